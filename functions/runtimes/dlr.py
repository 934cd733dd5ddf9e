"""Models that SageMaker Neo (or another TVM of its time) compiled, run by the package dlr and libdlr.so.

dlr calls a vendor's server when it is imported and at each load, without a time-out. `stay_home` makes that impossible;
it must be called before anything imports dlr, a function's own code included.

Treelite's models (forests) take 0.0 for a missing value, which is seldom meant; libdlr knows no other sign.

Options: ``missing`` of a Treelite model (``zero``, as libdlr has it; ``nan``: NaN is missing, and 0.0 is a number),
``device`` (``cpu``, ``gpu``, ``gpu:1``, ``opencl``: as the model was compiled), ``threads`` (as many as
TVM_NUM_THREADS says, which is 1 in a worker) and ``affinity`` (true binds its threads to processors).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from functions.runtimes.base import Array, Model, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.calling_home import stay_home
from functions.runtimes.options import choice, device_of, taken

LIBRARIES: Final = ("libdlr",)


class DlrModel(Model):
    """A model of dlr. Two threads on one model give wrong results and no error: one at a time."""

    runtime = "dlr"

    def __init__(self, implementation: Any, *, nan_is_missing: bool = False) -> None:
        super().__init__(_inputs(implementation), _outputs(implementation))
        self._implementation = implementation
        self._nan_is_missing = nan_is_missing
        self._names = [output.name for output in self.outputs]
        self.libraries = {"libdlr": implementation.version}

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        if self._nan_is_missing:
            arrays = {name: _with_zeros_missing(values) for name, values in arrays.items()}
        try:
            return dict(zip(self._names, self._implementation.run(arrays), strict=True))
        except Exception as error:
            raise ModelRunError(f"dlr: {error or 'it failed without a reason'}") from error

    def close(self) -> None:
        self._implementation = None


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the compiled model in `directory`, which must be a real path that no link will ever replace.

    Raises:
        ImportError: dlr is not installed.
        ModelLoadError: what libdlr said, RUNTIME_MISSING where there is no libdlr.so, DEVICE_UNAVAILABLE.
    """
    settings = taken(options, "dlr", device="cpu", threads=0, affinity=False, missing="zero")
    nan_is_missing = choice(settings, "dlr", "missing", {"zero": False, "nan": True})
    device = device_of(settings, "dlr", ("cpu", "gpu", "opencl"))
    stay_home()
    from dlr.dlr_model import DLRModelImpl
    from dlr.libpath import DLRLibraryNotFound

    # It writes a line a load and a traceback an error to standard error, whatever the log's settings are.
    logging.getLogger("dlr.neologger_logger").disabled = True
    said: list[str] = []
    try:
        with _captured_stderr(said):
            implementation = _create(DLRModelImpl, directory, device)
    except DLRLibraryNotFound:
        target = Path(sys.prefix, "dlr", "libdlr.so")
        raise ModelLoadError(_NO_LIBRARY.format(target=target, venv=sys.prefix), "RUNTIME_MISSING") from None
    except _LoadError as error:
        reason = _reason(said[0]) or str(error)
        if _NO_DEVICE.search(reason):
            raise ModelLoadError(f"{reason} {_OTHER_LIBRARY}", "DEVICE_UNAVAILABLE") from None
        raise ModelLoadError(f"dlr cannot load it: {reason}") from None
    sys.stderr.write(said[0])
    _set_threads(implementation, settings)
    if nan_is_missing and implementation.backend != "treelite":
        raise ModelLoadError("dlr's option `missing` is for Treelite models; this is none.")
    return DlrModel(implementation, nan_is_missing=nan_is_missing)


def version() -> str:
    """The installed dlr's."""
    stay_home()
    import dlr

    return str(dlr.__version__)


def _set_threads(implementation: Any, settings: Mapping[str, Any]) -> None:
    library, handle = implementation._lib, ctypes.byref(implementation.handle)
    if settings["threads"] > 0:
        library.SetDLRNumThreads(handle, ctypes.c_int(settings["threads"]))
    if settings["affinity"]:
        library.UseDLRCPUAffinity(handle, ctypes.c_int(1))


_NO_LIBRARY = (
    "There is no libdlr.so, neither in the model package (SageMaker Neo puts one there) nor at {target}. "
    "Install it: marram runtime install dlr --into {venv}; for another processor with --libdlr FILE."
)
_NO_DEVICE = re.compile(r"Device API \w+ is not enabled")
_OTHER_LIBRARY = (
    "(libdlr.so was built without it.) Put a libdlr.so that was built for the device into the model package, or install"
    " it: marram runtime install dlr --into VENV --libdlr FILE; or compile the model for the processor."
)


def _with_zeros_missing(values: Array) -> Array:
    """Zeros as the smallest number that is none, on the same side of any threshold, and NaN as zeros."""
    found: Array = np.where(values == 0, np.finfo(np.float32).tiny, values)
    found[np.isnan(found)] = 0
    return found.astype(values.dtype)


class _LoadError(Exception):
    """What is left of dlr's exception; often without a text."""


def _create(implementation: Any, directory: Path, device: tuple[str, int]) -> Any:
    from dlr.libpath import DLRLibraryNotFound

    try:
        return implementation(str(directory), *device)
    except DLRLibraryNotFound:
        raise
    except Exception as error:
        failure = _LoadError(str(error) or type(error).__name__)
    # Outside of `except`: the half-made model is gone by now, and what its __del__ says is in the captured output.
    raise failure


@contextlib.contextmanager
def _captured_stderr(said: list[str]) -> Iterator[None]:
    """Appends to `said` what native code writes to file descriptor 2 meanwhile: libdlr gives its reasons nowhere else.

    What other threads write in this time is in it too.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


_ERROR_LINE = re.compile(r"\[[\d:]+\] \S*dlr\.cc:\d+: (?!No metadata)")


def _reason(output: str) -> str:
    """The line of libdlr's output that tells what is wrong, without times, source files and stacks."""
    line = next((line for line in output.splitlines() if _ERROR_LINE.match(line)), "")
    reason = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", line).strip()
    if reason.startswith("Found multiple"):
        reason += " (libdlr takes no .json or .so in a model package but the model's own and libdlr.so)"
    return reason


def _inputs(implementation: Any) -> list[TensorSpec]:
    names, dtypes = implementation.get_input_names(), list(implementation.input_dtypes)
    return [
        TensorSpec(name, _input_shape(implementation, i), dtypes[i] if i < len(dtypes) else "float32")
        for i, name in enumerate(names)
    ]


def _input_shape(implementation: Any, index: int) -> tuple[int | None, ...]:
    library, handle = implementation._lib, ctypes.byref(implementation.handle)
    size, dimensions = ctypes.c_longlong(), ctypes.c_int()
    failed = library.GetDLRInputSizeDim(handle, index, ctypes.byref(size), ctypes.byref(dimensions))
    shape = (ctypes.c_longlong * max(dimensions.value, 1))()
    if failed or library.GetDLRInputShape(handle, index, shape):
        raise ModelLoadError("libdlr does not tell the shapes of the model's inputs.")
    return _shape(shape[: dimensions.value])


def _outputs(implementation: Any) -> list[TensorSpec]:
    count = implementation.num_outputs
    names = implementation.get_output_names()  # out of the .meta file; there may be none
    if len(names) != count:
        names = [f"output_{i}" for i in range(count)]
    dtypes = list(implementation.output_dtypes)
    shapes = getattr(implementation, "output_shapes", [])
    return [
        TensorSpec(
            name,
            _shape(shapes[i]) if i < len(shapes) else (None,),
            dtypes[i] if i < len(dtypes) else "float32",
        )
        for i, name in enumerate(names)
    ]


def _shape(sizes: Any) -> tuple[int | None, ...]:
    return tuple(int(size) if size >= 0 else None for size in np.asarray(sizes).tolist())
