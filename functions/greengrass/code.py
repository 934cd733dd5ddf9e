"""Imports V1 Lambda code as its core did, on the main thread, with the modules and the environment that it expects."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final

from functions.config import Config
from functions.errors import StartError
from functions.greengrass import arns
from functions.greengrass.entry import SDK, Entry
from functions.loading import told

MODULES: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "modules")
STREAM_MANAGER: Final = (
    "the stream manager is not a part of this core: publish instead, what is for a cloud that is away is kept (%s)"
)
NO_SDK: Final = "put greengrasssdk beside the function's code, or install it: %s -m pip install greengrasssdk==1.6.1"


def prepare(config: Config, folder: str) -> None:
    """Gives this process V1's modules and environment variables; to be called once, ahead of `load`."""
    arn = arns.of(config)
    os.environ.update(
        MY_FUNCTION_ARN=arn,
        AWS_LAMBDA_FUNCTION_NAME=arns.name_of(arn),
        AWS_LAMBDA_FUNCTION_VERSION=arns.qualifier_of(arn) or "$LATEST",
        AWS_IOT_THING_NAME=config.core,
        LAMBDA_TASK_ROOT=folder,
        ENCODING_TYPE=config.encoding,
    )
    sys.path[:0] = [folder, MODULES]
    sys.dont_write_bytecode = True  # the folder is an object of the store: nothing may be added to it
    sys.meta_path.insert(0, _Missing())


def load(config: Config, folder: str, entry: Entry) -> Callable[..., Any]:
    """Imports the code and gives its handler; returns when its top level does, which may be never.

    Raises:
        StartError: FUNCTION_IMPORT_FAILED, FUNCTION_NOT_FOUND.
    """
    try:
        module = importlib.import_module(entry.module) if entry.module else _own(folder, entry.file)
    except BaseException as error:  # a top level may well call sys.exit
        text = f"The function {config.function} cannot be imported: {told(error, folder)}"
        raise StartError("FUNCTION_IMPORT_FAILED", text) from error
    handler = getattr(module, entry.handler, None)
    if not callable(handler):
        text = f"The function {config.function} defines no {entry.handler}(event, context) in {entry.file}."
        raise StartError("FUNCTION_NOT_FOUND", text)
    found: Callable[..., Any] = handler
    return found


def _own(folder: str, file: str) -> ModuleType:
    name = "marram_lambda"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Missing(importlib.abc.MetaPathFinder):
    """Says of V1's modules that cannot be had here why that is, and what to do."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name in (f"{SDK}.stream_manager", "stream_manager"):
            raise ImportError(STREAM_MANAGER % "NOT_SUPPORTED")
        if name == SDK:
            others = [each for each in sys.meta_path if each is not self]
            if not any(each.find_spec(name, path, target) for each in others if hasattr(each, "find_spec")):
                raise ModuleNotFoundError(f"No module named '{SDK}': {NO_SDK % sys.executable}", name=SDK)
