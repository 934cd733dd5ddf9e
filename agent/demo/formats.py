"""Writes small dense networks as the files that real runtimes load: a Neo directory for dlr, an .onnx for ONNX Runtime.

It stands in for the compilers of a factory's build (SageMaker Neo, an exporter to ONNX), so that demo and tests need
nothing but numpy and, for Neo, gcc. It writes dense layers with ReLU between them and a softmax at the end; no others.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Layers: TypeAlias = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]

# TVM's serialised parameters (src/runtime/file_utils.h, include/tvm/runtime/ndarray.h).
_PARAMS_MAGIC = 0xF7E58D4F05049CB7
_ARRAY_MAGIC = 0xDD5E40F096B4A13F
_FLOAT32_CPU = struct.pack("<ii", 1, 0), struct.pack("<BBH", 2, 32, 1)

_PRELUDE = r"""
#include <math.h>
#include <stddef.h>
#include <stdint.h>
/* DLTensor as of dlpack 0.2 and 0.3, which libdlr 1.2 to 1.6 were built with. */
typedef struct { void *data; int32_t device_type, device_id, ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t byte_offset; } tensor;
typedef union { int64_t i; double f; void *h; } value;
#define OPERATOR(name) __attribute__((visibility("default"))) \
  int32_t name(value *a, int *types, int n, value *out, int *out_type, void *resource)
#define FLOATS(k) ((float *)((char *)((tensor *)a[k].h)->data + ((tensor *)a[k].h)->byte_offset))
"""

_DENSE = """
OPERATOR({name}) {{
  if (n != 4) return -1;
  const float *x = FLOATS(0), *w = FLOATS(1), *bias = FLOATS(2);
  float *y = FLOATS(3);
  for (int r = 0; r < {rows}; ++r)
    for (int j = 0; j < {outputs}; ++j) {{
      float s = bias[j];
      for (int k = 0; k < {inputs}; ++k) s += x[r * {inputs} + k] * w[(size_t)j * {inputs} + k];
      y[r * {outputs} + j] = {result};
    }}
  return 0;
}}
"""

_SOFTMAX = """
OPERATOR({name}) {{
  if (n != 2) return -1;
  const float *x = FLOATS(0);
  float *y = FLOATS(1);
  for (int r = 0; r < {rows}; ++r, x += {outputs}, y += {outputs}) {{
    float top = x[0], sum = 0.f;
    for (int j = 1; j < {outputs}; ++j) if (x[j] > top) top = x[j];
    for (int j = 0; j < {outputs}; ++j) sum += y[j] = expf(x[j] - top);
    for (int j = 0; j < {outputs}; ++j) y[j] /= sum;
  }}
  return 0;
}}
"""


class _Graph:
    """A TVM graph that grows node by node: graph json, operator sources and parameters together."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.nodes: list[dict[str, Any]] = []
        self.shapes: list[list[int]] = []
        self.arguments: list[int] = []
        self.params: dict[str, NDArray[np.float32]] = {}
        self.source = [_PRELUDE]

    def _add(self, node: dict[str, Any], shape: Sequence[int]) -> int:
        self.nodes.append(node)
        self.shapes.append(list(shape))
        return len(self.nodes) - 1

    def argument(self, name: str, shape: Sequence[int]) -> int:
        self.arguments.append(self._add({"op": "null", "name": name, "inputs": []}, shape))
        return self.arguments[-1]

    def parameter(self, name: str, values: NDArray[np.float32]) -> int:
        self.params[name] = values
        return self.argument(name, values.shape)

    def operator(self, name: str, code: str, inputs: Sequence[int], shape: Sequence[int]) -> int:
        self.source.append(code)
        attrs = {"num_outputs": "1", "num_inputs": str(len(inputs)), "flatten_data": "0", "func_name": name}
        return self._add({"op": "tvm_op", "name": name, "attrs": attrs, "inputs": [[i, 0, 0] for i in inputs]}, shape)

    def dense(self, k: int, x: int, weights: NDArray[np.float32], bias: NDArray[np.float32], *, relu: bool) -> int:
        name, (outputs, inputs) = f"dense_{k}", weights.shape
        result = "s > 0.f ? s : 0.f" if relu else "s"
        code = _DENSE.format(name=name, rows=self.rows, outputs=outputs, inputs=inputs, result=result)
        w, b = self.parameter(f"w{k}", weights), self.parameter(f"b{k}", bias)
        return self.operator(name, code, (x, w, b), (self.rows, outputs))

    def softmax(self, x: int, outputs: int) -> int:
        code = _SOFTMAX.format(name="softmax", rows=self.rows, outputs=outputs)
        return self.operator("softmax", code, (x,), (self.rows, outputs))

    def document(self, head: int) -> dict[str, Any]:
        count = len(self.nodes)
        attrs = {
            "dltype": ["list_str", ["float32"] * count],
            "shape": ["list_shape", self.shapes],
            "storage_id": ["list_int", list(range(count))],
        }
        return {
            "nodes": self.nodes,
            "arg_nodes": self.arguments,
            "heads": [[head, 0, 0]],
            "attrs": attrs,
            "node_row_ptr": list(range(count + 1)),
        }


def write_neo(
    directory: Path, layers: Layers, *, input_name: str = "data", output_name: str = "probabilities", batch: int = 1
) -> None:
    """Writes a Neo model directory (compiled.so, .params, _model.json, .meta) for this machine's processor.

    Args:
        directory: made if it is not there; the four files are written over.
        layers: (weights float32[outputs, inputs], bias float32[outputs]) each.
        batch: rows of one prediction; dlr knows no free batch size.

    Raises:
        ConfigError: COMPILER_MISSING without gcc, COMPILER_FAILED where gcc fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    layers = [(w.astype("<f4"), b.astype("<f4")) for w, b in layers]
    inputs, outputs = layers[0][0].shape[1], layers[-1][0].shape[0]
    graph = _Graph(batch)
    head = graph.argument(input_name, (batch, inputs))  # libdlr takes the first arguments as the inputs
    for k, (weights, bias) in enumerate(layers):
        head = graph.dense(k, head, weights, bias, relu=k < len(layers) - 1)
    head = graph.softmax(head, outputs)
    _compile("".join(graph.source), directory / "compiled.so")
    (directory / "compiled.params").write_bytes(_params(graph.params))
    (directory / "compiled_model.json").write_text(json.dumps(graph.document(head)))
    meta = {
        "Compiler": {"Name": "marram", "Version": "1"},
        "Model": {
            "Inputs": [{"name": input_name, "shape": [batch, inputs], "dtype": "float32"}],
            "Outputs": [{"name": output_name, "shape": [batch, outputs], "dtype": "float32"}],
        },
        "Requirements": {"TargetDevice": "LOCAL", "TargetDeviceType": "cpu"},  # libdlr wants it in lower case
    }
    (directory / "compiled.meta").write_text(json.dumps(meta))


def _compile(source: str, target: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ConfigError("COMPILER_MISSING", "gcc is not installed.", "Install it: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "model.c")
        file.write_text(source)
        # No -ffast-math: linking with it makes the whole process that loads the object flush denormals to zero.
        command = [compiler, "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(target), str(file), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError("COMPILER_FAILED", f"gcc could not build the model: {done.stderr.strip()[:500]}")


def _params(params: Mapping[str, NDArray[np.float32]]) -> bytes:
    parts = [struct.pack("<QQQ", _PARAMS_MAGIC, 0, len(params))]
    for name in map(str.encode, params):
        parts += [struct.pack("<Q", len(name)), name]
    parts.append(struct.pack("<Q", len(params)))
    context, dtype = _FLOAT32_CPU
    for array in params.values():
        parts += [struct.pack("<QQ", _ARRAY_MAGIC, 0), context, struct.pack("<i", array.ndim), dtype]
        parts += [struct.pack(f"<{array.ndim}q", *array.shape), struct.pack("<q", array.nbytes), array.tobytes()]
    return b"".join(parts)


def write_onnx(path: Path, layers: Layers, *, batch: int | None = None) -> None:
    """Writes the network as one .onnx file, input ``data``, output ``probabilities``.

    Args:
        path: the file; its folder is made if it is not there.
        layers: as for `write_neo`.
        batch: rows of one prediction; None leaves it free.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, head = [], [], "data"
    for k, (w, b) in enumerate(layers):
        weights += [
            numpy_helper.from_array(w.T.astype("<f4"), f"w{k}"),
            numpy_helper.from_array(b.astype("<f4"), f"b{k}"),
        ]
        nodes.append(helper.make_node("Gemm", [head, f"w{k}", f"b{k}"], [f"dense_{k}"]))
        head = f"dense_{k}"
        if k < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [head], [f"relu_{k}"]))
            head = f"relu_{k}"
    nodes.append(helper.make_node("Softmax", [head], ["probabilities"], axis=-1))
    rows = "batch" if batch is None else batch
    first = helper.make_tensor_value_info("data", TensorProto.FLOAT, [rows, layers[0][0].shape[1]])
    last = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, layers[-1][0].shape[0]])
    graph = helper.make_graph(nodes, "dense", [first], [last], weights)
    # The oldest version that knows all of this, so that old runtimes on devices load it too.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
