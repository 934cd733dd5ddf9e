"""From a message's bytes to an event and from a result to a message's bytes: JSON, msgpack or bytes as they are.

JSON is strict both ways: NaN and infinities are refused, because no other JSON reader takes them. Where orjson is, a
whole number beyond 64 bits is read as a float. An array in msgpack
is the map ``{"shape": [..], "dtype": "float32", "data": bytes}``, C order, little endian. numpy is imported only for
these.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack

from functions.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
BINARY: Final = "application/octet-stream"

_ARRAY_KEYS: Final = {"shape", "dtype", "data"}
_DTYPES: Final = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)


def kind_of(content_type: str | None, encoding: str) -> str:
    """JSON, MSGPACK or BINARY: what a message's content type says, else what the function's EncodingType does.

    Args:
        content_type: MQTT 5's, parameters and all; None where there is none.
        encoding: ``json`` or ``binary``.
    """
    if content_type is not None:
        name = content_type.partition(";")[0].strip().lower()
        if name in (JSON, MSGPACK, BINARY):
            return name
    return JSON if encoding == "json" else BINARY


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def plain(value: Any) -> Any:
    """What JSON can hold of a numpy array or scalar, recognised without importing numpy."""
    to_list = getattr(value, "tolist", None)
    if to_list is None:
        raise TypeError(f"an object of type {type(value).__name__} cannot be encoded")
    return to_list()


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
# Without the check for circles json ends in a RecursionError instead, which is caught as well.
_encoder: Final = json.JSONEncoder(
    allow_nan=False, check_circular=False, ensure_ascii=False, separators=(",", ":"), default=plain
)


def _json_loads(body: bytes) -> Any:
    return _decoder.decode(body.decode())


def _json_dumps(value: Any, default: Any = None, option: int = 0) -> bytes:
    return _encoder.encode(value).encode()


# orjson where the interpreter has it (four times faster); json stays the judge of what is valid. These two are called
# as they are for the common case, which saves a step of Python for each:
# - `quick_loads(body)` may refuse with a ValueError what `DECODERS` take;
# - `quick_dumps(value, plain, OPTION)` may refuse with a TypeError what `encode` takes, and may write null for NaN.
quick_loads: Callable[[bytes], Any] = _json_loads
quick_dumps: Callable[..., bytes] = _json_dumps
OPTION = 0
try:
    import orjson as _orjson

    quick_loads, quick_dumps = _orjson.loads, _orjson.dumps
    OPTION = _orjson.OPT_SERIALIZE_NUMPY | _orjson.OPT_PASSTHROUGH_DATACLASS | _orjson.OPT_PASSTHROUGH_DATETIME
except ImportError:
    pass


def _loads(body: bytes) -> Any:
    try:
        return quick_loads(body)
    except ValueError:
        return _json_loads(body)


def _decode_json(body: bytes) -> Any:
    try:
        return _loads(body)
    except RecursionError:
        raise RequestError("BAD_PAYLOAD", "The payload is no JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise RequestError("BAD_PAYLOAD", f"The payload is no JSON: {error}.") from None


def _dumps(value: Any) -> bytes:
    try:
        encoded = quick_dumps(value, plain, OPTION)
    except TypeError:  # keys that are no text, integers beyond 64 bits
        return _json_dumps(value)
    return _json_dumps(value) if b"null" in encoded else encoded


def _array(value: dict[str, Any]) -> Any:
    return decode_array(value) if value.keys() == _ARRAY_KEYS else value


def decode_array(value: dict[str, Any]) -> NDArray[Any]:
    """The array of a ``{"shape", "dtype", "data"}`` map; it shares the message's memory and cannot be written to.

    Raises:
        ValueError: an unknown dtype, or data whose length does not fit the shape.
    """
    import numpy as np

    shape, dtype, data = value["shape"], value["dtype"], value["data"]
    if dtype not in _DTYPES:
        raise ValueError(f"an array's dtype is {dtype!r}; known are {', '.join(sorted(_DTYPES))}")
    if not isinstance(data, bytes) or not isinstance(shape, list):
        raise ValueError("an array needs a list as its shape and bytes as its data")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"an array's shape is {shape}; whole numbers from 0 are expected")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _decode_msgpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body, object_hook=_array)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise RequestError("BAD_PAYLOAD", f"The payload is no valid msgpack: {reason}.") from None


def _as_is(body: bytes) -> bytes:
    return body


DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {JSON: _decode_json, MSGPACK: _decode_msgpack, BINARY: _as_is}
QUICK_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {**DECODERS, JSON: quick_loads}


def _pack_array(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        raise TypeError(f"an object of type {type(value).__name__} cannot be encoded")
    if not getattr(value, "shape", ()):
        return value.item()  # a scalar
    if dtype.name not in _DTYPES:
        raise TypeError(f"an array of dtype {dtype.name} cannot be encoded")
    if dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big"):
        value = value.astype(dtype.newbyteorder("<"))
    return {"shape": list(value.shape), "dtype": dtype.name, "data": value.tobytes()}


def encode(value: Any, kind: str) -> tuple[str, bytes]:
    """A result as (content type, bytes), in the encoding of its request.

    Bytes stay as they are but in msgpack, which holds them; text stays as it is for a request of plain bytes, and
    anything else becomes JSON there.

    Raises:
        RequestError: RESULT_NOT_ENCODABLE.
    """
    try:
        if kind == JSON and type(value) is dict:  # the common case
            return JSON, _dumps(value)
        if kind == MSGPACK:
            return MSGPACK, msgpack.packb(value, default=_pack_array)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return BINARY, bytes(value)
        if kind == BINARY and isinstance(value, str):
            return BINARY, value.encode()
        return JSON, _dumps(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        name = "msgpack" if kind == MSGPACK else "JSON"
        reason = "it is nested too deeply, or holds itself" if isinstance(error, RecursionError) else str(error)
        raise RequestError(
            "RESULT_NOT_ENCODABLE", f"The function's result cannot be sent as {name}: {reason}."
        ) from None


def encode_as(value: Any, content_type: str) -> tuple[str, bytes]:
    """A payload as the content type that a function named itself.

    Raises:
        RequestError: RESULT_NOT_ENCODABLE, also where the type is none of ours and `value` neither bytes nor text.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return content_type, bytes(value)
    ours = kind_of(content_type, "binary")
    if ours == BINARY and not isinstance(value, str):
        message = f"The content type {content_type}, which the function names, takes bytes or text."
        raise RequestError("RESULT_NOT_ENCODABLE", message)
    return content_type, encode(value, ours)[1]
