"""What a model's files tell by their names alone: where in a package they are, and which runtimes they could be for.

Imports no runtime and no numpy: the agent asks as well, for the interpreter that has the runtime.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

_MXNET_PARAMS = re.compile(r"-\d{4}\.params$")
_CHECKPOINT_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")


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


def names_in(directory: Path) -> list[str]:
    """The names of what lies in `directory`, sorted, without hidden ones."""
    return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))


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
    # A checkpoint is no model yet, but TensorFlow's module is the one that tells how to make one of it.
    if has(".pb") or (has(".index") and any(map(_CHECKPOINT_DATA.search, names))):
        hits.append("tensorflow")
    return hits
