"""Which runtime a model directory is for, by its files alone. Anything but exactly one hit is an error."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from functions.errors import StartError

_MXNET_PARAMS = re.compile(r"-\d{4}\.params$")


def model_directory(tree: Path) -> Path:
    """The directory that holds the model's files: `tree`, or below it where folders hold nothing but one folder.

    The path is a real one: dlr, given a link that was turned since, takes the new parameters and the old code.
    """
    directory = Path(os.path.realpath(tree))
    while True:
        entries = list(directory.iterdir())
        if len(entries) != 1 or not entries[0].is_dir():
            return directory
        directory = entries[0]


def detect(directory: Path) -> str:
    """The name of the one runtime that `directory`'s files are for.

    Raises:
        StartError: RUNTIME_UNKNOWN; the message lists the files.
    """
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    hits = runtimes_of(names)
    if len(hits) == 1:
        return hits[0]
    files = ", ".join(names[:20]) or "none"
    what = f"fit more than one runtime ({', '.join(hits)})" if hits else "fit no known runtime"
    raise StartError(
        "RUNTIME_UNKNOWN",
        f"The model package's files {what}: {files}. Say which one it is for: Marram: {{Runtime: ..}} in its resource.",
    )


def runtimes_of(names: Sequence[str]) -> list[str]:
    """All runtimes that a directory with these file names could be for."""

    def has(suffix: str) -> bool:
        return any(name.endswith(suffix) for name in names)

    hits = []
    library = any(name.endswith(".so") and name != "libdlr.so" for name in names)
    # First: .params are dlr's as well.
    if has("-symbol.json") and any(map(_MXNET_PARAMS.search, names)):
        hits.append("mxnet")
    elif library or has(".ro"):
        hits.append("dlr")
    if has(".onnx"):
        hits.append("onnx")
    if has(".tflite"):
        hits.append("litert")
    if has(".pb"):
        hits.append("tensorflow")
    return hits
