"""The bench's two models and what is sent to them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from agent.demo.formats import write_onnx
from tests.agent_kit import layers

NUMBER = "00000000"  # what the load generator replaces in each request
CHANNELS = (3, 16, 32, 64)


def write_scores(directory: Path) -> Path:
    """16 floats to 3 scores by way of 32 hidden units; returns the file."""
    write_onnx(directory / "model.onnx", layers(1))
    return directory / "model.onnx"


def write_look(directory: Path) -> Path:
    """uint8[1, 224, 224, 3] to 10 scores, 34 million multiply-adds in three convolutions; returns the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(2)
    weights = [numpy_helper.from_array(np.float32(1 / 255), "scale")]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["layer0"]),
    ]
    for k, (taken, given) in enumerate(itertools.pairwise(CHANNELS)):
        weights.append(numpy_helper.from_array(chance.normal(0, 0.1, (given, taken, 3, 3)).astype("f4"), f"w{k}"))
        nodes.append(
            helper.make_node("Conv", [f"layer{k}", f"w{k}"], [f"c{k}"], strides=[2, 2], pads=[1, 1, 1, 1]),
        )
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"layer{k + 1}"]))
    weights.append(numpy_helper.from_array(chance.normal(0, 0.1, (CHANNELS[-1], 10)).astype("f4"), "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", ["layer3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    first = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 224, 224, 3])
    last = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "look", [first], [last], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(directory / "model.onnx"))
    return directory / "model.onnx"


def _window() -> list[float]:
    return [round(float(value), 6) for value in np.random.default_rng(3).uniform(-1, 1, 16)]


def sensor_request() -> bytes:
    """A request of the sensor job: 16 floats as JSON."""
    return json.dumps({"id": NUMBER, "x": _window()}).encode()


def endpoint_request() -> bytes:
    """The same in the Open Inference Protocol."""
    tensor: dict[str, Any] = {"name": "data", "shape": [1, 16], "datatype": "FP32", "data": _window()}
    return json.dumps({"id": NUMBER, "inputs": [tensor]}).encode()


def image_request() -> bytes:
    """A raw image whose first eight bytes are the request's number."""
    return NUMBER.encode() + np.random.default_rng(4).bytes(224 * 224 * 3 - 8)


def bytes_request(size: int) -> bytes:
    """So many bytes that begin with the request's number."""
    return NUMBER.encode() + np.random.default_rng(5).bytes(size - 8)
