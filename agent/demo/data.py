"""The recordings that the demonstration's watches replay: "BasicMotions", real data of a smart watch.

Four students stood, walked, ran and played badminton with a watch on; each recording is 100 samples (ten a second) of
a 3-D accelerometer and a 3-D gyroscope. The recordings come in aeon's wheel, which is only read as a zip file here:
nothing of it is installed or run.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import agent
from agent.errors import ConfigError
from agent.values import dataclass
from functions.activity import ACTIVITIES, CHANNELS

SAMPLES = 100
WHEEL = "aeon-1.6.0-*.whl"
MAX_BYTES = 4 * 1024 * 1024  # of one split, unpacked; the real ones have 228 kB
_SPLIT = "aeon/datasets/data/BasicMotions/BasicMotions_{}.ts"


@dataclass(frozen=True, slots=True)
class Recordings:
    """One split.

    Attributes:
        windows: float64[recordings, 100 samples, 6 channels].
        labels: int64[recordings], indices into `ACTIVITIES`.
    """

    windows: NDArray[np.float64]
    labels: NDArray[np.int64]


def find_wheel() -> Path:
    """The wheel in ``.cache`` below the working directory or the checkout.

    Raises:
        ConfigError: RECORDINGS_MISSING.
    """
    for folder in (Path.cwd(), Path(agent.__file__).parents[1]):
        found = sorted(folder.glob(f".cache/{WHEEL}"))
        if found:
            return found[-1]
    raise ConfigError(
        "RECORDINGS_MISSING",
        "the smart-watch recordings that the demonstration replays are not here.",
        "Run scripts/demo, which fetches them, or: pip download --no-deps --dest .cache aeon==1.6.0",
    )


def read(wheel: Path) -> tuple[Recordings, Recordings]:
    """The training split and the test split.

    Raises:
        ConfigError: RECORDINGS_BROKEN: the file is no wheel, or does not hold what is expected.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _split(archive, "TRAIN"), _split(archive, "TEST")
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigError(
            "RECORDINGS_BROKEN", f"{wheel} cannot be read: {error}.", "Delete it and run scripts/demo again."
        ) from error


def _split(archive: zipfile.ZipFile, name: str) -> Recordings:
    info = archive.getinfo(_SPLIT.format(name))
    if info.file_size > MAX_BYTES:
        raise ValueError(f"{info.filename} has {info.file_size} bytes")
    with archive.open(info) as file:
        rows = list(_rows(io.TextIOWrapper(file, encoding="utf-8")))
    windows = np.array([window for window, _ in rows])
    if windows.shape[1:] != (SAMPLES, CHANNELS):
        raise ValueError(f"{info.filename} holds windows of the shape {list(windows.shape[1:])}")
    return Recordings(windows, np.array([label for _, label in rows]))


def _rows(lines: io.TextIOWrapper) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Parses sktime's .ts format: after ``@data``, channels parted by colons, the label last."""
    for line in lines:
        if line.strip() == "@data":
            break
    for line in filter(None, map(str.strip, lines)):
        *channels, label = line.split(":")
        values = np.array([[float(x) for x in channel.split(",")] for channel in channels])
        yield values.T, ACTIVITIES.index(label)
