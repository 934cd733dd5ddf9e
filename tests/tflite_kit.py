"""Writes dense networks as .tflite files without TensorFlow: the schema's own objects, and flatbuffers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SCALES = {np.int8: (-128, 127), np.uint8: (0, 255)}


class _Writer:
    """A model that grows tensor by tensor and operator by operator."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, b"tests"
        self.model.buffers, self.model.operatorCodes, self.model.signatureDefs = [schema.BufferT()], [], []
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = b"main", [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: int = schema.TensorType.FLOAT32,
        *,
        data: Any = None,
        scale: tuple[float, int] | None = None,
        free: bool = False,
    ) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), dtype, 0
        if free:
            made.shapeSignature = [-1, *shape[1:]]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale[0]], [scale[1]]
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def operator(self, code: int, inputs: list[int], outputs: list[int], kind: int = 0, options: Any = None) -> None:
        made = schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 1
        self.model.operatorCodes.append(made)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.model.operatorCodes) - 1, inputs, outputs
        operator.builtinOptionsType, operator.builtinOptions = kind, options
        self.graph.operators.append(operator)

    def save(self, path: Path, inputs: dict[str, int], outputs: dict[str, int]) -> Path:
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = _named(inputs), _named(outputs)
        self.model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(builder.Output()))
        return path


def _named(tensors: dict[str, int]) -> list[Any]:
    made = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        made.append(entry)
    return made


def write_tflite(path: Path, layers: Any, *, batch: int | None = 1) -> Path:
    """The network as one .tflite, ``data`` to ``probabilities``; `batch` None leaves the rows free.

    Its tensors have other names than its signature, as converters leave them.
    """
    writer, rows, free = _Writer(), batch or 1, batch is None
    head = first = writer.tensor("serving_default_data:0", (rows, layers[0][0].shape[1]), free=free)
    for k, (weights, bias) in enumerate(layers):
        inputs = [
            head,
            writer.tensor(f"w{k}", weights.shape, data=weights),
            writer.tensor(f"b{k}", bias.shape, data=bias),
        ]
        head = writer.tensor(f"dense{k}", (rows, len(weights)), free=free)
        options = schema.FullyConnectedOptionsT()
        relu = schema.ActivationFunctionType.RELU
        options.fusedActivationFunction = relu if k < len(layers) - 1 else schema.ActivationFunctionType.NONE
        kind = schema.BuiltinOptions.FullyConnectedOptions
        writer.operator(schema.BuiltinOperator.FULLY_CONNECTED, inputs, [head], kind, options)
    last = writer.tensor("StatefulPartitionedCall:0", (rows, len(layers[-1][0])), free=free)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    writer.operator(schema.BuiltinOperator.SOFTMAX, [head], [last], schema.BuiltinOptions.SoftmaxOptions, options)
    return writer.save(path, {"data": first}, {"probabilities": last})


def write_quantised(path: Path, weights: Any, bias: Any, *, reach: float) -> Path:
    """One dense layer in int8, inputs and weights by their own scales, outputs in uint8's range as int8.

    Args:
        reach: the greatest input that is meant.
    """
    writer = _Writer()
    in_scale = np.float32(reach / 127)
    w_scale = np.float32(np.abs(weights).max() / 127)
    out_scale = np.float32(np.abs(weights).sum(1).max() * reach / 127)
    whole = np.clip(np.round(weights / w_scale), -127, 127).astype(np.int8)
    first = writer.tensor("in", (1, weights.shape[1]), schema.TensorType.INT8, scale=(in_scale, 3))
    w = writer.tensor("w", weights.shape, schema.TensorType.INT8, data=whole, scale=(w_scale, 0))
    b_scale = in_scale * w_scale
    b = writer.tensor(
        "b", bias.shape, schema.TensorType.INT32, data=np.round(bias / b_scale).astype(np.int32), scale=(b_scale, 0)
    )
    last = writer.tensor("out", (1, len(weights)), schema.TensorType.INT8, scale=(out_scale, -5))
    options = schema.FullyConnectedOptionsT()
    kind = schema.BuiltinOptions.FullyConnectedOptions
    writer.operator(schema.BuiltinOperator.FULLY_CONNECTED, [first, w, b], [last], kind, options)
    return writer.save(path, {"data": first}, {"scores": last})
