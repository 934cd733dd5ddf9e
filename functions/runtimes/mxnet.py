"""Models for MXNet 1.x: NAME-symbol.json and NAME-NNNN.params, as a Module's checkpoint or a gluon block's export.

Neither file says what shape the inputs have, so the option ``shapes`` does: ``{data: [1, 3, 224, 224]}``, null for a
size that is free. Further options: ``dtypes`` (``{data: int32}``; float32 otherwise), ``epoch`` (which .params, where
there are several), ``prefix`` (which NAME) and ``device`` (``cpu``, ``gpu``, ``gpu:1``).

Executors are not thread-safe: one prediction at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from functions.runtimes.base import Array, Model, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.mxnet_files import (
    Network,
    attributes_of,
    check_inputs,
    find_files,
    inputs_of,
    network_of,
    reason_of,
    refuse_newer,
)
from functions.runtimes.options import Shapes, device_of, shapes_of, taken

LIBRARIES: Final = ()
MAX_BOUND: Final = 16  # executors kept, one for each combination of free sizes

_ENGINE = "MXNET_ENGINE_TYPE"


class MxnetModel(Model):
    """Executors over one set of weights: one for each combination of the sizes that are free."""

    runtime = "mxnet"

    def __init__(self, mx: Any, network: Network, shapes: Shapes) -> None:
        self._mx = mx
        self._network = network
        self._bound: dict[tuple[tuple[int, ...], ...], Any] = {}
        inputs = [TensorSpec(name, shape, network.dtypes.get(name, "float32")) for name, shape in shapes.items()]
        self._order = [spec.name for spec in inputs]
        super().__init__(inputs, self._outputs(inputs))

    def _outputs(self, inputs: list[TensorSpec]) -> list[TensorSpec]:
        """Their sizes that change with the inputs' free ones are free."""
        names = [name.removesuffix("_output") for name in self._network.symbol.list_outputs()]
        small, large = (self._forward(_zeros(inputs, free)) for free in (1, 2))
        return [
            TensorSpec(name, tuple(a if a == b else None for a, b in zip(x.shape, y.shape, strict=True)), x.dtype.name)
            for name, x, y in zip(names, small, large, strict=True)
        ]

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            found = self._forward(arrays)
        except RuntimeError as error:  # MXNetError is one
            raise ModelRunError(f"MXNet: {reason_of(error)}") from error
        return {spec.name: array for spec, array in zip(self.outputs, found, strict=True)}

    def _forward(self, arrays: Mapping[str, Array]) -> list[Array]:
        with self._mx.util.np_shape(self._network.numpy):  # of this thread alone
            return [output.asnumpy() for output in self._executor(arrays).forward(is_train=False, **arrays)]

    def _executor(self, arrays: Mapping[str, Array]) -> Any:
        shapes = tuple(arrays[name].shape for name in self._order)
        executor = self._bound.get(shapes)
        if executor is None:
            if len(self._bound) >= MAX_BOUND:
                self._bound.pop(next(iter(self._bound)))
            executor = self._bound[shapes] = self._bind(shapes)
        return executor

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """An executor for inputs of these shapes; it shares the weights with the others."""
        network, context = self._network, self._network.context
        names = network.symbol.list_arguments()
        sizes, _, _ = network.symbol.infer_shape(**dict(zip(self._order, shapes, strict=True)))
        arguments = {}
        for name, size in zip(names, sizes, strict=True):
            weights = network.arguments.get(name)
            if weights is not None and weights.shape != size:
                text = f"The weights {name} have the shape {list(weights.shape)}; with these `shapes` they would need"
                raise ModelLoadError(f"{text} {list(size)}.")
            # Without weights: an input, or a label, which predictions do not read.
            arguments[name] = self._mx.nd.zeros(size, context, network.dtypes.get(name)) if weights is None else weights
        return network.symbol.bind(context, arguments, grad_req="null", aux_states=dict(network.auxiliary))

    def close(self) -> None:
        self._bound.clear()


def _zeros(inputs: list[TensorSpec], free: int) -> dict[str, Array]:
    return {spec.name: np.zeros([free if size is None else size for size in spec.shape], spec.dtype) for spec in inputs}


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the network in `directory`.

    Raises:
        ImportError: MXNet is not installed.
        ModelLoadError: what is wrong with it, RUNTIME_INCOMPATIBLE, DEVICE_UNAVAILABLE.
    """
    settings = taken(options, "MXNet", shapes={}, dtypes={}, epoch=-1, prefix="", device="cpu")
    shapes = shapes_of(settings, "MXNet")
    files = find_files(directory, settings)
    mx = _library()
    attributes = attributes_of(files.symbol)
    refuse_newer(files.symbol.name, attributes, mx)
    context, numpy = _context(mx, settings), bool(attributes.get("is_np_shape", (None, 0))[1])
    try:
        with mx.util.np_shape(numpy):
            symbol = mx.sym.load(str(files.symbol))
            saved = mx.nd.load(str(files.params))
    except mx.MXNetError as error:
        raise ModelLoadError(f"MXNet cannot load {files.symbol.name}: {reason_of(error)}") from error
    network = network_of(symbol, saved, files, context, settings["dtypes"], numpy)
    check_inputs(network, shapes)
    try:
        return MxnetModel(mx, network, {name: shapes[name] for name in inputs_of(network)})
    except RuntimeError as error:  # MXNetError is one
        raise ModelLoadError(f"MXNet cannot run {files.symbol.name}: {reason_of(error)}") from error


def version() -> str:
    """The installed MXNet's."""
    return str(_library().__version__)


def _library() -> Any:
    # V1's documents name an engine that MXNet 1.9.1 refuses when it is imported; it means this one.
    if os.environ.get(_ENGINE) == "NativeEngine":
        os.environ[_ENGINE] = "NaiveEngine"
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    try:
        import mxnet
    except AttributeError as error:  # numpy.bool and its like, which numpy 1.24 took away
        raise ModelLoadError(
            f"MXNet cannot be imported with numpy {np.__version__}: {error}. It needs numpy 1.23.5, in an environment"
            " of its own: marram runtime install mxnet",
            "RUNTIME_INCOMPATIBLE",
        ) from error
    return mxnet


def _context(mx: Any, settings: Mapping[str, Any]) -> Any:
    kind, number = device_of(settings, "MXNet", ("cpu", "gpu"))
    if kind == "cpu":
        return mx.cpu()
    try:
        count, reason = mx.context.num_gpus(), ""
    except mx.MXNetError as error:
        count, reason = 0, f" ({reason_of(error)})"
    if number >= count:
        raise ModelLoadError(
            f"MXNet sees {count} GPUs here{reason}, and {settings['device']} is asked for. Install a build for the"
            " device, such as mxnet-cu112, with the device's driver, or leave out the option `device`.",
            "DEVICE_UNAVAILABLE",
        )
    return mx.gpu(number)
