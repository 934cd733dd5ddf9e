"""Serves one model without code, in the Open Inference Protocol: as JSON, and the same keys in msgpack with raw bytes.

A request: ``{"id", "inputs": [{"name", "shape", "datatype", "data"}], "outputs": [{"name"}]}``, of which ``id`` and
``outputs`` may be left out. ``data`` is a list, flat or nested as ``shape`` says; in msgpack it may be bytes, little
endian and C order. The answer: ``{"model_name", "model_version", "id", "outputs": [..]}``, with flat lists in JSON,
bytes in msgpack.

Source: Open Inference Protocol V2, REST, "inference". It refuses what the protocol does not say; text tensors (BYTES)
are not served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from functions.errors import RequestError
from functions.payload import MSGPACK
from functions.runtimes.base import STRING, Array, Model, converted
from functions.sdk import Context

DATATYPES: Final = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DTYPES: Final = {datatype: np.dtype(name) for datatype, name in DATATYPES.items()}
_DATATYPE_OF: Final = {dtype: datatype for datatype, dtype in _DTYPES.items()}  # its `name` is made in Python each time


class _Request(NamedTuple):
    inputs: dict[str, Array]
    outputs: tuple[str, ...]  # names, in the order in which they are answered


class Endpoint:
    """The handlers of a function that is nothing but a model.

    Args:
        name: the model resource's Id.
        version: ``sha256:`` and its digest.
    """

    def __init__(self, name: str, version: str, model: Model) -> None:
        self._name = name
        self._version = version
        self._model = model
        self._all = tuple(spec.name for spec in model.outputs if spec.dtype != STRING)

    @property
    def can_batch(self) -> bool:
        """Whether requests can share a prediction: the first dimension of every input and output is free."""
        specs = self._model.inputs + self._model.outputs
        return all(spec.shape and spec.shape[0] is None for spec in specs)

    def handle(self, event: Any, context: Context) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            RequestError: BAD_PAYLOAD for what is no such request, BAD_INPUT for what the model does not take.
        """
        inputs, names = self._inputs(event), self._selected(event)
        return self._answered(event, context, names, self._model.predict(inputs))

    def handle_batch(self, events: Sequence[Any], contexts: Sequence[Context]) -> list[Any]:
        """The answers to several requests, an exception for each that failed; those of one shape share a prediction."""
        results: list[Any] = [None] * len(events)
        groups: dict[Any, list[tuple[int, _Request]]] = {}
        for i, event in enumerate(events):
            try:
                request = _Request(self._inputs(event), self._selected(event))
            except RequestError as error:
                results[i] = error
            else:
                groups.setdefault(_likeness(request), []).append((i, request))
        for group in groups.values():
            for (i, request), outcome in zip(group, self._predicted([r for _, r in group]), strict=True):
                failed = isinstance(outcome, RequestError)
                results[i] = outcome if failed else self._answered(events[i], contexts[i], request.outputs, outcome)
        return results

    def _predicted(self, requests: list[_Request]) -> list[Any]:
        """Outputs, or an error, for each of requests that differ in nothing but their rows."""
        rows = [_rows(request) for request in requests]
        if len(requests) > 1 and min(rows) > 0:
            joined = {name: np.concatenate([r.inputs[name] for r in requests]) for name in requests[0].inputs}
            try:
                outputs = self._model.predict(joined)
            except RequestError:
                outputs = {}
            if outputs and all(len(array) == sum(rows) for array in outputs.values()):
                return _split(outputs, rows)
        return [self._outcome(request) for request in requests]

    def _outcome(self, request: _Request) -> dict[str, Array] | RequestError:
        try:
            return self._model.predict(request.inputs)
        except RequestError as error:
            return error

    def _inputs(self, event: Any) -> dict[str, Array]:
        if not isinstance(event, dict):
            raise _bad("a model endpoint takes an object with the key `inputs`")
        tensors = event.get("inputs")
        if not isinstance(tensors, list) or not tensors:
            raise _bad("`inputs` must be a list of at least one tensor")
        inputs: dict[str, Array] = {}
        for tensor in tensors:
            name, array = _tensor(tensor)
            if name in inputs:
                raise _bad(f'the input "{name}" is there twice')
            inputs[name] = array
        return inputs

    def _selected(self, event: dict[str, Any]) -> tuple[str, ...]:
        wanted = event.get("outputs")
        if wanted is None:
            return self._all
        if not isinstance(wanted, list) or not all(isinstance(each, dict) for each in wanted):
            raise _bad("`outputs` must be a list of objects with the key `name`")
        names = tuple(each.get("name") for each in wanted)
        for name in names:
            if name not in self._all:
                raise _bad(f"the model has no output {name!r}; its outputs: {', '.join(self._all)}")
        return names or self._all

    def _answered(
        self, event: Any, context: Context, names: tuple[str, ...], outputs: dict[str, Array]
    ) -> dict[str, Any]:
        own = event.get("id")
        as_bytes = context.content_type == MSGPACK
        return {
            "model_name": self._name,
            "model_version": self._version,
            "id": own if isinstance(own, str) else context.request,
            "outputs": [_described(name, outputs[name], as_bytes) for name in names],
        }


def _bad(what: str) -> RequestError:
    return RequestError("BAD_PAYLOAD", f"The payload is no inference request: {what}.")


def _bad_shape(name: str) -> RequestError:
    return _bad(f'the `shape` of "{name}" must be a list of whole numbers from 0')


def _tensor(tensor: Any) -> tuple[str, Array]:
    if not isinstance(tensor, dict):
        raise _bad("each of `inputs` must be an object")
    name, shape, datatype = tensor.get("name"), tensor.get("shape"), tensor.get("datatype")
    if not isinstance(name, str):
        raise _bad("each of `inputs` needs a `name`")
    if not isinstance(shape, list):
        raise _bad_shape(name)
    for size in shape:
        if type(size) is not int or size < 0:
            raise _bad_shape(name)
    dtype = _DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise _bad(f'the `datatype` of "{name}" is {datatype!r}; served are {", ".join(DATATYPES)}')
    data = tensor.get("data")
    if isinstance(data, list):
        return name, _from_list(name, data, shape, dtype)
    if isinstance(data, bytes):
        return name, _from_bytes(name, data, shape, dtype)
    raise _bad(f'the `data` of "{name}" must be a list, or bytes in msgpack')


def _from_bytes(name: str, data: bytes, shape: list[int], dtype: np.dtype[Any]) -> Array:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise _bad(f'the `data` of "{name}" has {len(data)} bytes, its shape and datatype make {expected}')
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)


def _from_list(name: str, data: list[Any], shape: list[int], dtype: np.dtype[Any]) -> Array:
    array = converted(data, name, dtype)
    if array.ndim == 1 and array.size == math.prod(shape):
        return array.reshape(shape)
    if list(array.shape) != shape:
        raise _bad(f'the `data` of "{name}" has the shape {list(array.shape)}, its `shape` says {shape}')
    return array


def _described(name: str, array: Array, as_bytes: bool) -> dict[str, Any]:
    data: Any = array.ravel()
    if as_bytes:
        data = data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    datatype = _DATATYPE_OF.get(array.dtype) or _DATATYPE_OF[np.dtype(array.dtype.name)]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def _likeness(request: _Request) -> Any:
    """Equal for requests that can be joined along the first dimension."""
    inputs = request.inputs
    counts = {array.shape[:1] for array in inputs.values()}
    alone = id(request) if len(counts) != 1 or () in counts else 0
    return alone, tuple((name, inputs[name].dtype.str, inputs[name].shape[1:]) for name in sorted(inputs))


def _rows(request: _Request) -> int:
    first = next(iter(request.inputs.values()))
    return len(first) if first.ndim else 0


def _split(outputs: dict[str, Array], rows: list[int]) -> list[dict[str, Array]]:
    parts, at = [], 0
    for count in rows:
        parts.append({name: array[at : at + count] for name, array in outputs.items()})
        at += count
    return parts
