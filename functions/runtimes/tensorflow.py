"""Models for TensorFlow: a frozen graph (one .pb file) or a SavedModel (saved_model.pb and its variables).

Options: ``file`` (which .pb, where there are several), ``signature`` and ``tag`` of a SavedModel, ``inputs`` and
``outputs`` (lists of tensors of a frozen graph, where those that it shows by itself are not the right ones), ``shapes``
(of inputs whose rank the graph leaves open), ``device`` (``cpu``, ``gpu``, ``gpu:1``; left out, TensorFlow chooses),
``threads`` and ``inter_threads`` (1).

A frozen graph's inputs are its placeholders, its outputs what operations give that nothing consumes; ``:0`` is left
out of their names, ``:1`` is not. A process must not fork once a session exists: its child hangs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from functions.runtimes.base import STRING, Array, Model, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.options import Shapes, device_of, first_line, one_file, shapes_of, taken

LIBRARIES: Final = ()
SAVED_MODEL = "saved_model.pb"

_VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable")
_NO_OUTPUTS = ("Placeholder", "Const", "NoOp")
_FREEZE = (
    "Freeze it where it was trained, with TensorFlow's own tool: python -m tensorflow.python.tools.freeze_graph"
    " --input_meta_graph=NAME.meta --input_checkpoint=NAME --input_binary=true --output_node_names=OUTPUTS"
    " --output_graph=frozen.pb; and package frozen.pb alone. Or export a SavedModel."
)


class _Tensor(NamedTuple):
    """A tensor of the graph under the name that users know."""

    spec: TensorSpec
    name: str


class TensorflowModel(Model):
    """A session over a graph. Sessions are thread-safe."""

    runtime = "tensorflow"
    thread_safe = True

    def __init__(self, session: Any, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]) -> None:
        super().__init__([each.spec for each in inputs], [each.spec for each in outputs])
        self._session = session
        self._names = [spec.name for spec in self.outputs]
        self._order = [spec.name for spec in self.inputs]
        self._call = session.make_callable([each.name for each in outputs], feed_list=[each.name for each in inputs])

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(self._names, self._call(*(arrays[name] for name in self._order)), strict=True))
        except Exception as error:  # OpError, ValueError, TypeError
            raise ModelRunError(f"TensorFlow: {first_line(error)}") from error

    def close(self) -> None:
        self._session.close()


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the frozen graph or SavedModel in `directory`.

    Raises:
        ImportError: TensorFlow is not installed.
        ModelLoadError: what is wrong with it; MODEL_NOT_FROZEN for a checkpoint, DEVICE_UNAVAILABLE.
    """
    settings = taken(
        options, "TensorFlow",
        file="", signature="serving_default", tag="serve", inputs=[], outputs=[], shapes={}, device="", threads=1,
        inter_threads=1,
    )  # fmt: skip
    shapes = shapes_of(settings, "TensorFlow")
    saved = (directory / SAVED_MODEL).is_file() and not settings["file"]
    if not saved and not settings["file"]:
        _refuse_checkpoint(directory)
    file = None if saved else one_file(directory, ".pb", settings["file"])
    tf = _library()
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=_config(tf, settings))
    try:
        with graph.as_default(), graph.device(_device(tf, settings)):
            if file is None:
                inputs, outputs = _saved_model(tf, session, directory, settings, shapes)
            else:
                inputs, outputs = _frozen_graph(tf, graph, file, settings, shapes)
        return TensorflowModel(session, inputs, outputs)
    except BaseException:
        session.close()
        raise


def version() -> str:
    """The installed TensorFlow's."""
    return str(_library().__version__)


def _library() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else it tells of processor features at each start
    import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


# -- where it runs ----------------------------------------------------------------------------------------------------


def _config(tf: Any, settings: Mapping[str, Any]) -> Any:
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=max(1, settings["threads"]),
        inter_op_parallelism_threads=max(1, settings["inter_threads"]),
        use_per_session_threads=True,
        allow_soft_placement=True,  # what has no kernel on a GPU, such as text, runs on the processor
    )
    config.gpu_options.allow_growth = True  # else the first session takes all of its memory
    return config


def _device(tf: Any, settings: Mapping[str, Any]) -> str | None:
    if not settings["device"]:
        return None
    kind, number = device_of(settings, "TensorFlow", ("cpu", "gpu", "tpu"))
    wanted = f"{kind.upper()}:{number}"
    there = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    if wanted not in there:
        raise ModelLoadError(
            f"TensorFlow has no device {wanted} here; it has {', '.join(there)}. Install the device's driver and a"
            " TensorFlow that is built for it, or leave out the option `device`.",
            "DEVICE_UNAVAILABLE",
        )
    return f"/device:{wanted}"


# -- frozen graphs ----------------------------------------------------------------------------------------------------


def _frozen_graph(
    tf: Any, graph: Any, file: Path, settings: Mapping[str, Any], shapes: Shapes
) -> tuple[list[_Tensor], list[_Tensor]]:
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(file.read_bytes())
        tf.compat.v1.import_graph_def(definition, name="")
    except Exception as error:  # DecodeError, ValueError, OpError
        raise ModelLoadError(f"{file.name} is no frozen graph: {first_line(error)}") from error
    operations = graph.get_operations()
    variables = [each.name for each in operations if each.type in _VARIABLES]
    if variables:
        raise ModelLoadError(
            f"{file.name} is not frozen: its weights are variables ({', '.join(variables[:5])}). {_FREEZE}",
            "MODEL_NOT_FROZEN",
        )
    inputs = settings["inputs"] or [_short(each.outputs[0]) for each in operations if each.type == "Placeholder"]
    outputs = settings["outputs"] or [_short(tensor) for tensor in _unconsumed(operations)]
    if not inputs or not outputs:
        raise ModelLoadError(f"{file.name} has no {'outputs' if inputs else 'placeholders'}: it is no model.")
    return _named(graph, inputs, shapes), _named(graph, outputs, {}, free=True)


def _unconsumed(operations: Iterable[Any]) -> list[Any]:
    ends = (
        each
        for each in operations
        if each.type not in _NO_OUTPUTS and not any(tensor.consumers() for tensor in each.outputs)
    )
    return [tensor for each in ends for tensor in each.outputs]


def _short(tensor: Any) -> str:
    return str(tensor.name).removesuffix(":0")


def _named(graph: Any, names: Sequence[str], shapes: Shapes, *, free: bool = False) -> list[_Tensor]:
    found = []
    for name in names:
        full = name if ":" in name else f"{name}:0"
        try:
            tensor = graph.get_tensor_by_name(full)
        except (KeyError, ValueError) as error:
            raise ModelLoadError(f"The graph has no tensor {name}.") from error
        found.append(_tensor(name, full, tensor.shape, tensor.dtype, shapes, free=free))
    return found


def _tensor(name: str, full: str, shape: Any, dtype: Any, shapes: Shapes, *, free: bool) -> _Tensor:
    """`free`: nothing is checked against its shape, so that it may be unknown."""
    if name in shapes:
        sizes = shapes[name]
    elif shape.rank is not None:
        sizes = tuple(shape.as_list())
    elif free:
        sizes = ()
    else:
        example = f"Options: {{shapes: {{{name}: [null, 224, 224, 3]}}}}"
        raise ModelLoadError(f'The graph leaves the rank of "{name}" open. Give its sizes: {example}.')
    return _Tensor(TensorSpec(name, sizes, STRING if dtype.name == "string" else dtype.name), full)


# -- SavedModel -------------------------------------------------------------------------------------------------------


def _saved_model(
    tf: Any, session: Any, directory: Path, settings: Mapping[str, Any], shapes: Shapes
) -> tuple[list[_Tensor], list[_Tensor]]:
    try:
        meta = tf.compat.v1.saved_model.load(session, [settings["tag"]], str(directory))
    except Exception as error:  # OSError, RuntimeError, OpError
        raise ModelLoadError(f"TensorFlow cannot load the SavedModel: {first_line(error)}") from error
    signatures = {name: each for name, each in meta.signature_def.items() if not name.startswith("__saved_model")}
    if settings["signature"] not in signatures:
        names = ", ".join(signatures) or "none"
        raise ModelLoadError(f"The SavedModel has no signature {settings['signature']}; it has {names}.")
    chosen = signatures[settings["signature"]]
    return _signed(tf, chosen.inputs, shapes), _signed(tf, chosen.outputs, {}, free=True)


def _signed(tf: Any, tensors: Mapping[str, Any], shapes: Shapes, *, free: bool = False) -> list[_Tensor]:
    return [
        _tensor(name, info.name, tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), shapes, free=free)
        for name, info in sorted(tensors.items())
    ]


def _refuse_checkpoint(directory: Path) -> None:
    if any(directory.glob("*.pb")):
        return
    indices = sorted(path.stem for path in directory.glob("*.index"))
    if indices:
        raise ModelLoadError(
            f"The model package holds a checkpoint ({', '.join(indices)}): weights without the graph that they are"
            f" for. {_FREEZE}",
            "MODEL_NOT_FROZEN",
        )
