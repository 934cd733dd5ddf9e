"""The pictures of the circle: 1,797 hand-written digits of 8 x 8 pixels, and how they are shared out.

They come in scikit-learn's wheel, which is only read as a zip file here: nothing of it is installed or run. Source:
UCI, "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), its test set.
"""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import agent
from agent.errors import ConfigError
from agent.values import dataclass

PIXELS = 64
CLASSES = 10
WHEEL = "scikit_learn-*.whl"
FILE = "sklearn/datasets/data/digits.csv.gz"
MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures, float32[n, 64] from 0 to 16, and what they show, int64[n] from 0 to 9."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: NDArray[np.int64]) -> Digits:
        """Some of them."""
        return Digits(self.pixels[which], self.labels[which])

    def joined(self, more: Digits) -> Digits:
        """These and `more`."""
        return Digits(np.concatenate([self.pixels, more.pixels]), np.concatenate([self.labels, more.labels]))


@dataclass(frozen=True, slots=True)
class Split:
    """What the factory has labelled, what the device will see, and what the models are judged by."""

    seed: Digits
    stream: Digits
    holdout: Digits


def find_wheel() -> Path:
    """The wheel in ``.cache`` below the working directory or the checkout.

    Raises:
        ConfigError: DIGITS_MISSING.
    """
    for folder in (Path.cwd(), Path(agent.__file__).parents[1]):
        found = sorted(folder.glob(f".cache/{WHEEL}"))
        if found:
            return found[-1]
    raise ConfigError(
        "DIGITS_MISSING",
        "the digits that the circle learns from are not here.",
        "Run scripts/circle, which fetches them, or: pip download --no-deps --dest .cache scikit-learn==1.7.2",
    )


def read(wheel: Path) -> Digits:
    """All digits.

    Raises:
        ConfigError: DIGITS_BROKEN: the file is no wheel, or does not hold what is expected.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(FILE) as packed, gzip.open(packed) as file:
            text = file.read(MAX_BYTES).decode()
        values = np.array([line.split(",") for line in text.split()], dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != PIXELS + 1:
            raise ValueError(f"its rows have {values.shape[1:]} values")
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        text = f"{wheel} cannot be read: {error}."
        raise ConfigError("DIGITS_BROKEN", text, "Delete it and run scripts/circle again.") from error
    return Digits(values[:, :PIXELS].astype(np.float32), values[:, PIXELS].astype(np.int64))


def split(digits: Digits, *, seed: int, labelled: int, holdout: int) -> Split:
    """Shares the digits out by chance; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(digits))
    return Split(
        digits.take(order[:labelled]),
        digits.take(order[labelled + holdout :]),
        digits.take(order[labelled : labelled + holdout]),
    )
