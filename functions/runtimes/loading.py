"""Finds the runtime of a model directory, loads the model with it and runs it once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from functions.errors import CodedError, StartError
from functions.model_files import model_directory
from functions.runtimes import versions
from functions.runtimes.base import Model, ModelLoadError
from functions.runtimes.detect import detect

RUNTIMES: Final = {
    name: f"functions.runtimes.{name}" for name in ("dlr", "onnx", "litert", "tensorflow", "mxnet")
}  # fmt: skip

CROWDED: Final = ("mxnet",)  # do not go with what else is in an environment, such as a numpy of today


def load(
    resource: str,
    path: str,
    runtime: str | None,
    options: Mapping[str, Any],
    requires: Mapping[str, str] | None = None,
) -> Model:
    """The model in the directory `path`, not warmed up yet.

    Args:
        resource: its resource Id, for messages.
        runtime: its runtime's name; None: by its files.
        requires: versions that must be installed, by name; ``runtime`` is the runtime's own.

    Raises:
        StartError: RUNTIME_UNKNOWN, RUNTIME_MISSING, RUNTIME_VERSION_MISMATCH, MODEL_LOAD_FAILED, or as the runtime's
            module has it.
    """
    try:
        directory = model_directory(Path(path))
        name = runtime or detect(directory)
    except OSError as error:
        raise ModelLoadError(f"The model {resource} cannot be read: {error}") from error
    if name not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise StartError("RUNTIME_UNKNOWN", f'The model {resource} is for the runtime "{name}"; known are {known}.')
    module = importlib.import_module(RUNTIMES[name])
    try:
        asked = {(name if key == "runtime" else key): wanted for key, wanted in (requires or {}).items()}
        late = {key: asked.pop(key) for key in module.LIBRARIES if key in asked}
        if asked:
            versions.check(asked, {name: module.version()})
        model: Model = module.load(directory, options)
        versions.check(late, model.libraries)
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    except CodedError as error:
        raise StartError(error.code, f"The model {resource}: {error.message}") from error
    except MemoryError as error:
        raise ModelLoadError(f"The model {resource} does not fit into the worker's memory.") from error
    except Exception as error:
        raise ModelLoadError(f"The model {resource} cannot be loaded: {type(error).__name__}: {error}") from error
    return model


def check_requires(model: Model, requires: Mapping[str, str]) -> None:
    """That what is installed is what a loaded model's package requires.

    Raises:
        StartError: RUNTIME_VERSION_MISMATCH.
    """
    name = model.runtime
    asked = {(name if key == "runtime" else key): wanted for key, wanted in requires.items()}
    versions.check(asked, {**model.libraries, name: importlib.import_module(RUNTIMES[name]).version()})


def warm_up(resource: str, model: Model) -> None:
    """Runs `model` once on zeros.

    Raises:
        StartError: MODEL_WARM_UP_FAILED.
    """
    try:
        model.warm_up()
    except Exception as error:
        reason = error.message if isinstance(error, CodedError) else f"{type(error).__name__}: {error}"
        raise StartError("MODEL_WARM_UP_FAILED", f"The model {resource} fails on zeros: {reason}") from error


def _missing(runtime: str, error: ModuleNotFoundError) -> StartError:
    command = f"marram runtime install {runtime}"
    remedy = f"Install it in an environment of its own: {command}, which tells what to add to policy.interpreters"
    if runtime not in CROWDED:
        remedy += f"; or there: {command} --into {sys.prefix}"
    text = f"The runtime {runtime} is not installed for {sys.executable} ({error}). {remedy}."
    return StartError("RUNTIME_MISSING", text)
