"""Which runtime a model directory is for, by its files alone. Anything but exactly one hit is an error."""

from __future__ import annotations

from pathlib import Path

from functions.errors import StartError
from functions.model_files import names_in, runtimes_of


def detect(directory: Path) -> str:
    """The name of the one runtime that `directory`'s files are for.

    Raises:
        StartError: RUNTIME_UNKNOWN; the message lists the files.
    """
    names = names_in(directory)
    hits = runtimes_of(names)
    if len(hits) == 1:
        return hits[0]
    files = ", ".join(names[:20]) or "none"
    what = f"fit more than one runtime ({', '.join(hits)})" if hits else "fit no known runtime"
    raise StartError(
        "RUNTIME_UNKNOWN",
        f"The model package's files {what}: {files}. Say which one it is for: Marram: {{Runtime: ..}} in its resource.",
    )
