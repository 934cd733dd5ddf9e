"""What every model offers, whatever its runtime: named inputs and outputs, and a prediction that checks its inputs.

The checks are made here, not left to the libraries: dlr reuses the last value for an input that is missing, and says
nothing.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np

from functions.errors import RequestError, StartError

if TYPE_CHECKING:
    from numpy.typing import NDArray  # 3 ms, for a name

    Array: TypeAlias = NDArray[Any]
else:
    Array = np.ndarray
STRING = "string"
_ndarray: Final = np.ndarray
_asarray: Final = np.asarray
_OBJECT: Final = np.dtype(object)
_DOUBLE: Final = np.dtype(np.float64)
_SINGLE: Final = np.dtype(np.float32)


class TensorSpec(NamedTuple):
    """An input or an output.

    Attributes:
        shape: None for each free dimension.
        dtype: numpy's name of it (``float32``), or ``string``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class ModelLoadError(StartError):
    """A model directory that its runtime cannot load."""

    def __init__(self, message: str, code: str = "MODEL_LOAD_FAILED") -> None:
        super().__init__(code, message)


class ModelInputError(RequestError):
    """Inputs that do not fit the model: the message names the input, and what is expected."""

    def __init__(self, message: str) -> None:
        super().__init__("BAD_INPUT", message)


class ModelRunError(RequestError):
    """The runtime failed on inputs that fit."""

    def __init__(self, message: str) -> None:
        super().__init__("MODEL_FAILED", message)


class _Expected:
    """What an input must be.

    Attributes:
        seen: the last shape that fitted: nearly always the next one's, which then need not be looked at.
    """

    __slots__ = ("dtype", "seen", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.dtype = _dtype(spec)
        self.seen: tuple[int, ...] | None = None


class Model(ABC):
    """A loaded model. `predict` may be called from several threads: where the library cannot, they wait for each other.

    Attributes:
        runtime: the runtime's name, as `Marram: {Runtime: ..}` has it.
        libraries: versions of what it loaded besides, by name.
        inputs, outputs: in the model's own order.
    """

    runtime: ClassVar[str]
    thread_safe: ClassVar[bool] = False
    libraries: Mapping[str, str] = MappingProxyType({})

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._expected = {spec.name: _Expected(spec) for spec in inputs}
        self._wanted = list(self._expected.items())
        self._lock = None if self.thread_safe else threading.Lock()

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """All outputs by name for `inputs` by name: arrays, or nested lists of numbers.

        A whole number may become a float and a float a float of another size; a float never becomes a whole number.

        Raises:
            ModelInputError: an unknown or missing input, a wrong shape, or values that its type cannot hold.
            ModelRunError: the runtime failed.
        """
        if len(inputs) != len(self._wanted):
            raise _wrong_names(inputs, self._expected)
        arrays: dict[str, Array] = {}
        for name, expected in self._wanted:
            if name not in inputs:
                raise _wrong_names(inputs, self._expected)
            value = inputs[name]
            if type(value) is not _ndarray or value.dtype != expected.dtype:
                value = converted(value, name, expected.dtype)
            shape = value.shape
            if shape != expected.seen:
                _check_shape(value, expected.spec)
                expected.seen = shape
            arrays[name] = value
        if self._lock is None:
            return self._run(arrays)
        with self._lock:
            return self._run(arrays)

    def warm_up(self) -> None:
        """One prediction on zeros or empty texts, free dimensions taken as 1: what is lazy in a runtime happens now."""
        shapes = ((s, tuple(1 if size is None else size for size in s.shape)) for s in self.inputs)
        self.predict({spec.name: _blank(spec, shape) for spec, shape in shapes})

    @abstractmethod
    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The prediction itself, on arrays of the right names, shapes and types."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do but to be forgotten
        """Frees what the runtime holds; the model cannot be used afterwards."""


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(object if spec.dtype == STRING else spec.dtype)


def _blank(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    return np.full(shape, "", object) if spec.dtype == STRING else np.zeros(shape, _dtype(spec))


def _wrong_names(inputs: Mapping[str, Any], expected: Mapping[str, Any]) -> ModelInputError:
    wrong = [f'"{name}" is missing' for name in expected if name not in inputs]
    wrong += [f'"{name}" is unknown' for name in inputs if name not in expected]
    names = ", ".join(expected)
    return ModelInputError(f"The model's inputs are {names}: {', '.join(wrong)}.")


def _check_shape(value: Array, spec: TensorSpec) -> None:
    shape = value.shape
    if len(shape) == len(spec.shape) and all(e is None or e == n for e, n in zip(spec.shape, shape, strict=True)):
        return
    expected = "[" + ", ".join("any" if size is None else str(size) for size in spec.shape) + "]"
    raise ModelInputError(f'Input "{spec.name}" has the shape {list(shape)}, the model takes {expected}.')


def converted(value: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """`value` as an array of `dtype`, where no whole number is made of a float and none is cut.

    Args:
        value: an array or nested lists.
        name: the input's name, for messages.

    Raises:
        ModelInputError: it cannot be.
    """
    text = dtype is _OBJECT
    try:
        array = _asarray(value, dtype=object) if text else _asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelInputError(f'Input "{name}" is no array: {error}.') from None
    if array.dtype is _DOUBLE and dtype is _SINGLE:  # nearly always
        return array.astype(dtype)
    if text and all(isinstance(item, str) for item in array.flat):
        return array
    if not text and (array.size == 0 or _fits(array, dtype)):
        return array.astype(dtype)
    raise ModelInputError(f'Input "{name}" holds values that {STRING if text else dtype.name} cannot hold.')


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    have, want = array.dtype.kind, dtype.kind
    if have not in "biuf":
        return False
    if want == "f":
        return True
    if want == "b":
        return have == "b"
    if have == "f":
        return False
    if have == "b":
        return True
    limits = np.iinfo(dtype)
    return bool(array.min() >= limits.min and array.max() <= limits.max)
