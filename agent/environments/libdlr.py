"""libdlr.so, the library behind the package dlr, which current releases of that package do not carry."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agent.errors import AgentError, IntegrityError

# The last release whose wheel carries libdlr.so for x86-64; dlr 1.10.0's Python runs it.
WHEEL: Final = "dlr==1.6.0"
SHA256: Final = "570d8e462cd1f4f6d997e150d6d0eea0026010098194bef62d1ad4f8e1196ca7"
MEMBER: Final = "data/dlr/libdlr.so"
NONE: Final = Path("none")


def place_of(python: Path) -> Path:
    """Where dlr looks for it in an environment."""
    return python.parent.parent / "dlr" / "libdlr.so"


def install_libdlr(python: Path, given: Path | None, pip: Callable[[Sequence[str], str], None]) -> None:
    """Puts `given`, or the one out of PyPI's wheel, to where dlr looks for it, unless it is `NONE` or there is one.

    Args:
        python: the environment's, in its bin directory.
        given: a libdlr.so that was built for this machine.
        pip: runs pip with these arguments; the text says what it is for.

    Raises:
        AgentError: LIBDLR_MISSING on a machine that PyPI has none for, FILE_UNREADABLE.
        IntegrityError: LIBDLR_DIFFERS.
    """
    target = place_of(python)
    if given == NONE:
        return
    if given is not None:
        _write(_read(given), target)
        return
    if target.is_file():
        return
    if platform.machine() != "x86_64":
        text = f"there is no ready libdlr.so for {platform.machine()}"
        remedy = (
            "Name one that was built for this machine: --libdlr /path/to/libdlr.so. Packages that carry their own, as"
            " SageMaker Neo's do, need none: install with --libdlr none."
        )
        raise AgentError("LIBDLR_MISSING", text, remedy)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--disable-pip-version-check", "--quiet", "--no-deps", "--dest", folder]
        wheel = ["--platform", "manylinux1_x86_64", "--only-binary=:all:", WHEEL]
        pip(["download", *options, *wheel], f"the wheel of {WHEEL} cannot be fetched")
        _write(_member(next(Path(folder).glob("dlr-*.whl"))), target)


def _member(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith(MEMBER)))
    if hashlib.sha256(data).hexdigest() != SHA256:
        text = f"libdlr.so out of {wheel.name} differs from the one that was tested"
        raise IntegrityError("LIBDLR_DIFFERS", text, "Look at where pip's index gets its packages from.")
    return data


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        text = f"{file} cannot be read: {error.strerror}"
        raise AgentError("FILE_UNREADABLE", text, "Name a file that you may read.") from error


def _write(data: bytes, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, target)  # a worker may have the old one mapped
