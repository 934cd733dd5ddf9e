"""`marram capture export`: samples from a core, a broker or files, written to a directory. Blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from agent.capture import formats
from agent.capture.received import Received, lines, parse
from agent.errors import ConfigError, RejectedError
from agent.values import dataclass


@dataclass
class Exported:
    """What was written.

    Attributes:
        doubles: samples that came more than once, and are in it once.
        unreadable: messages that are no samples.
    """

    samples: int = 0
    doubles: int = 0
    unreadable: int = 0
    files: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "doubles": self.doubles,
            "unreadable": self.unreadable,
            "files": self.files,
        }


def read_files(files: Iterable[Path]) -> Iterator[bytes]:
    """The messages in files: one a line in JSON, or a whole file that is one in msgpack.

    Raises:
        ConfigError: FILE_UNREADABLE.
    """
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            text = f"{file} cannot be read: {error.strerror}."
            raise ConfigError("FILE_UNREADABLE", text, "Name a file that you may read.") from error
        if data[:1] >= b"\x80":  # a msgpack map
            yield data
        else:
            yield from lines(data)


def write(directory: Path, format: str, messages: Iterable[bytes]) -> Exported:
    """Writes the samples of `messages` below `directory`; what is no sample is counted.

    Raises:
        ConfigError: EXPORT_UNWRITABLE.
    """
    done = Exported()
    try:
        for name, body in formats.files(format, _samples(messages, done)):
            place = directory / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
            done.files.append(name)
    except OSError as error:
        text = f"The samples cannot be written below {directory}: {error.strerror}."
        raise ConfigError("EXPORT_UNWRITABLE", text, "Name a directory that you may write.") from error
    return done


def _samples(messages: Iterable[bytes], done: Exported) -> Iterator[Received]:
    seen: set[str] = set()
    for body in messages:
        try:
            sample = parse(body)
        except RejectedError:
            done.unreadable += 1
            continue
        if sample.id in seen:
            done.doubles += 1
        else:
            seen.add(sample.id)
            done.samples += 1
            yield sample
