"""Models for LiteRT (TensorFlow Lite before): a directory with one .tflite file.

Options: ``threads`` (1), ``file`` (which .tflite, where there are several), ``raw`` (true: quantised tensors are taken
and given as the whole numbers that they are), ``delegate`` (the path of a delegate's library, for an accelerator) and
``delegate_options``.

The interpreter is not thread-safe: the model's lock is all that stands between its threads and wrong results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from functions.runtimes.base import Array, Model, ModelInputError, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.options import first_line, one_file, taken

LIBRARIES: Final = ()


class _Scale(NamedTuple):
    """How a quantised tensor's whole numbers stand for real ones: ``real = (whole - zero) * scale``."""

    scale: np.float32
    zero: int
    dtype: np.dtype[Any]

    def quantised(self, values: Array, name: str) -> Array:
        """Rounds half away from zero and saturates, as LiteRT's own kernel does."""
        if np.isnan(values).any():
            raise ModelInputError(f'Input "{name}" holds NaN, which {self.dtype.name} cannot hold.')
        limits = np.iinfo(self.dtype)
        steps = values / self.scale
        whole = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + self.zero
        quantised: Array = np.clip(whole, limits.min, limits.max).astype(self.dtype)
        return quantised

    def real(self, whole: Array) -> Array:
        real: Array = (whole.astype(np.float32) - np.float32(self.zero)) * self.scale
        return real


class _Tensor(NamedTuple):
    spec: TensorSpec
    at: int  # its index in the graph
    scale: _Scale | None


class LitertModel(Model):
    """An interpreter of LiteRT."""

    runtime = "litert"

    def __init__(self, interpreter: Any, *, raw: bool) -> None:
        names = _signature_names(interpreter)
        self._taken = [_tensor(detail, names, raw=raw) for detail in interpreter.get_input_details()]
        self._given = [_tensor(detail, names, raw=raw) for detail in interpreter.get_output_details()]
        super().__init__([each.spec for each in self._taken], [each.spec for each in self._given])
        self._interpreter = interpreter
        self._free = any(None in spec.shape for spec in self.inputs)
        self._shapes: dict[int, tuple[int, ...]] = {}  # those that the free inputs have now

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            if self._free:
                self._resize(arrays)
            for spec, index, scale in self._taken:
                array = arrays[spec.name]
                self._interpreter.set_tensor(index, scale.quantised(array, spec.name) if scale else array)
            self._interpreter.invoke()
            return {each.spec.name: self._output(each) for each in self._given}
        except ModelInputError:
            raise
        except Exception as error:  # ValueError and RuntimeError, by what went wrong
            self._shapes.clear()
            raise ModelRunError(f"LiteRT: {first_line(error)}") from error

    def _resize(self, arrays: Mapping[str, Array]) -> None:
        wanted = {each.at: arrays[each.spec.name].shape for each in self._taken if None in each.spec.shape}
        if wanted == self._shapes:
            return
        for index, shape in wanted.items():
            self._interpreter.resize_tensor_input(index, shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = wanted

    def _output(self, tensor: _Tensor) -> Array:
        values: Array = self._interpreter.get_tensor(tensor.at)  # a copy
        return tensor.scale.real(values) if tensor.scale else values

    def close(self) -> None:
        self._interpreter = None


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the .tflite file in `directory`.

    Raises:
        ImportError: LiteRT is not installed.
        ModelLoadError: no such file, one that it refuses, or DEVICE_UNAVAILABLE where the delegate is not there.
    """
    library = _library()
    settings = taken(options, "LiteRT", threads=1, file="", raw=False, delegate="", delegate_options={})
    file = one_file(directory, ".tflite", settings["file"])
    delegates = [_delegate(library, settings)] if settings["delegate"] else None
    try:
        interpreter = library.Interpreter(
            str(file), experimental_delegates=delegates, num_threads=max(1, settings["threads"])
        )
        interpreter.allocate_tensors()
    except Exception as error:  # as above
        raise ModelLoadError(f"LiteRT cannot load {file.name}: {first_line(error)}") from error
    return LitertModel(interpreter, raw=settings["raw"])


def version() -> str:
    """The installed LiteRT's."""
    return str(__import__(_library().__name__.partition(".")[0]).__version__)


def _library() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ModuleNotFoundError as missing:
        try:
            from tflite_runtime import interpreter  # its name until 2024, which many devices still have
        except ModuleNotFoundError:
            raise missing from None
    return interpreter


def _delegate(library: Any, settings: Mapping[str, Any]) -> Any:
    path = settings["delegate"]
    try:
        # Asked for first: LiteRT's own object, half made, leaves a traceback in the log when it goes.
        ctypes.CDLL(path).tflite_plugin_create_delegate  # noqa: B018
        return library.load_delegate(path, settings["delegate_options"])
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = first_line(error).removeprefix(f"Failed to load delegate from {path}").strip() or "no reason was given"
        raise ModelLoadError(
            f"LiteRT's delegate {path} cannot be used on this device: {reason}. Install it with its driver, or leave"
            " out the option `delegate` to run on the processor.",
            "DEVICE_UNAVAILABLE",
        ) from error


def _signature_names(interpreter: Any) -> dict[int, str]:
    """The tensors' names by index as the model's one signature has them: converters garble those of the tensors."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {}
    [key] = signatures
    runner = interpreter.get_signature_runner(key)
    details = {**runner.get_input_details(), **runner.get_output_details()}
    names = {int(detail["index"]): name for name, detail in details.items()}
    known = {int(each["index"]) for each in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    return names if known == set(names) else {}


def _tensor(detail: Mapping[str, Any], names: Mapping[int, str], *, raw: bool) -> _Tensor:
    index, dtype = int(detail["index"]), np.dtype(detail["dtype"])
    name = names.get(index, detail["name"])
    if dtype.kind not in "biuf":
        raise ModelLoadError(f'"{name}" is of type {dtype}; only tensors of numbers are served.')
    sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    scale = None if raw else _scale(detail, dtype)
    return _Tensor(TensorSpec(name, shape, "float32" if scale else dtype.name), index, scale)


def _scale(detail: Mapping[str, Any], dtype: np.dtype[Any]) -> _Scale | None:
    quantised = detail["quantization_parameters"]
    if dtype.kind not in "iu" or len(quantised["scales"]) != 1:
        return None
    return _Scale(np.float32(quantised["scales"][0]), int(quantised["zero_points"][0]), dtype)
