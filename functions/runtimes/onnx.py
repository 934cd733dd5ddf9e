"""Models for ONNX Runtime: a directory with one .onnx file.

Options: ``file`` (which .onnx, where there are several), ``threads`` and ``inter_threads`` (1), ``spinning`` (false),
``optimization`` (all, extended, basic, none), ``providers`` (execution providers in the order of preference; all of
them must be there) with ``provider_options`` (``{provider: {..}}``), and ``session`` (more entries of its
configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from functions.runtimes.base import STRING, Array, Model, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.calling_home import stay_home
from functions.runtimes.options import choice, first_line, one_file, taken

LIBRARIES: Final = ()
_LEVELS: Final = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_CPU: Final = "CPUExecutionProvider"

_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": STRING,
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


class OnnxModel(Model):
    """A session of ONNX Runtime."""

    runtime = "onnx"
    thread_safe = True

    def __init__(self, session: Any) -> None:
        super().__init__([_spec(i) for i in session.get_inputs()], [_spec(o) for o in session.get_outputs()])
        self._names = [output.name for output in self.outputs]
        # Its face in Python looks again at what `predict` has looked at: 2 us of 10, for a small model.
        self._predict = getattr(session, "_sess", session).run

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            outputs = self._predict(self._names, arrays, None)
        except Exception as error:  # its own exception classes have no common base
            raise ModelRunError(f"ONNX Runtime: {first_line(error)}") from error
        if len(outputs) == 1:
            return {self._names[0]: outputs[0]}
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._predict = None


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the .onnx file in `directory`.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ModelLoadError: no such file, one that it refuses, or DEVICE_UNAVAILABLE for a provider that is not there.
    """
    stay_home()
    import onnxruntime

    settings = taken(
        options, "ONNX Runtime",
        file="", threads=1, inter_threads=1, spinning=False, optimization="all", providers=[], provider_options={},
        session={},
    )  # fmt: skip
    file = one_file(directory, ".onnx", settings["file"])
    providers = _providers(onnxruntime, settings)
    try:
        session = onnxruntime.InferenceSession(
            str(file),
            _session_options(onnxruntime, settings),
            providers=[*providers, _CPU] if _CPU not in providers else providers,
            provider_options=_provider_options(providers, settings),
        )
    except Exception as error:  # its own exception classes have no common base
        raise ModelLoadError(f"ONNX Runtime cannot load {file.name}: {first_line(error)}") from error
    # A provider whose own library or device is not there is left out with no more than a line in a log.
    _refuse_missing(providers, session.get_providers(), "came up")
    return OnnxModel(session)


def version() -> str:
    """The installed ONNX Runtime's."""
    stay_home()
    import onnxruntime

    return str(onnxruntime.__version__)


def _session_options(onnxruntime: Any, settings: Mapping[str, Any]) -> Any:
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = settings["threads"]
    found.inter_op_num_threads = settings["inter_threads"]
    if settings["inter_threads"] > 1:
        found.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    level = choice(settings, "ONNX Runtime", "optimization", _LEVELS)
    found.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    # Threads that spin while they wait take the CPU from everything else on a small device.
    entries = {"session.intra_op.allow_spinning": str(int(settings["spinning"])), **settings["session"]}
    for key, value in entries.items():
        found.add_session_config_entry(str(key), str(value))
    found.log_severity_level = 3
    return found


def _providers(onnxruntime: Any, settings: Mapping[str, Any]) -> list[str]:
    names = settings["providers"] or [_CPU]
    if not all(isinstance(name, str) for name in names):
        raise ModelLoadError("ONNX Runtime's option `providers` is a list of names, such as CUDAExecutionProvider.")
    _refuse_missing(names, onnxruntime.get_available_providers(), "are in this build")
    return [str(name) for name in names]


def _provider_options(providers: list[str], settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """One for each provider that the session gets, which ends with the CPU's."""
    given = settings["provider_options"]
    unknown = [name for name in given if name not in providers]
    if unknown or not all(isinstance(each, dict) for each in given.values()):
        raise ModelLoadError(
            "ONNX Runtime's option `provider_options` has an object of options for each provider of `providers`; it has"
            f" {', '.join(unknown) or 'something else'}."
        )
    every = providers if _CPU in providers else [*providers, _CPU]
    return [{str(key): str(value) for key, value in given.get(name, {}).items()} for name in every]


def _refuse_missing(wanted: list[str], there: list[str], how: str) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ModelLoadError(
            f"ONNX Runtime has no {', '.join(missing)} here: {', '.join(there)} {how}. Install the package for the"
            " device, such as onnxruntime-gpu or onnxruntime-openvino, with the device's driver, or take it out of"
            " `providers`.",
            "DEVICE_UNAVAILABLE",
        )


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type)
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    if inner not in _TYPES:
        raise ModelLoadError(f'"{node.name}" is of type {kind}; only tensors of numbers and text are served.')
    return TensorSpec(node.name, tuple(n if isinstance(n, int) else None for n in node.shape), _TYPES[inner])
