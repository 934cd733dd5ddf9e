"""Models for ONNX Runtime: a directory with one .onnx file.

Options: ``threads`` (1), ``file`` (which .onnx, where there are several).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from functions.runtimes.base import STRING, Array, Model, ModelLoadError, ModelRunError, TensorSpec
from functions.runtimes.options import taken

INSTALL = "{python} -m pip install onnxruntime"

_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": STRING,
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


class OnnxModel(Model):
    """A session of ONNX Runtime on the CPU."""

    runtime = "onnx"
    thread_safe = True

    def __init__(self, session: Any) -> None:
        super().__init__([_spec(i) for i in session.get_inputs()], [_spec(o) for o in session.get_outputs()])
        self._session = session
        self._names = [output.name for output in self.outputs]

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(self._names, self._session.run(self._names, arrays), strict=True))
        except Exception as error:  # its own exception classes have no common base
            raise ModelRunError(f"ONNX Runtime: {_first_line(error)}") from error

    def close(self) -> None:
        self._session = None


def load(directory: Path, options: Mapping[str, Any]) -> Model:
    """Loads the .onnx file in `directory`.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ModelLoadError: no such file, or one that it refuses.
    """
    import onnxruntime

    settings = taken(options, "ONNX Runtime", threads=1, file="")
    file = _file(directory, settings["file"])
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = settings["threads"]
    session_options.inter_op_num_threads = 1
    # Threads that spin while they wait take the CPU from everything else on a small device.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), session_options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ModelLoadError(f"ONNX Runtime cannot load {file.name}: {_first_line(error)}") from error
    return OnnxModel(session)


def _file(directory: Path, name: str) -> Path:
    files = [directory / name] if name else sorted(directory.glob("*.onnx"))
    if len(files) == 1 and files[0].is_file():
        return files[0]
    found = ", ".join(file.name for file in files) or "none"
    raise ModelLoadError(
        f"Exactly one .onnx file is expected in the model package, found: {found}. The option `file` picks one."
    )


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type)
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    if inner not in _TYPES:
        raise ModelLoadError(f'"{node.name}" is of type {kind}; only tensors of numbers and text are served.')
    return TensorSpec(node.name, tuple(n if isinstance(n, int) else None for n in node.shape), _TYPES[inner])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
