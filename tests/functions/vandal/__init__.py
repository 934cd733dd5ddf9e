"""Tries to write where the event says, and tells what came of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from functions.sdk import Context


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """`write`: paths to append to (``$NAME`` is filled in); `read`: paths to give the text of."""
    return {
        "written": {path: _write(os.path.expandvars(path)) for path in event.get("write", ())},
        "read": {path: _read(os.path.expandvars(path)) for path in event.get("read", ())},
        "groups": os.getgroups(),
    }


def _write(path: str) -> str:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("vandal was here\n")
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "written"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")[-20_000:]
    except OSError:
        return None
