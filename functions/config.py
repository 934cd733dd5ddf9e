"""The first frame that a worker gets: all that it is told about its function."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

CONCURRENCY: Final = 16  # requests that an async handler has under way, where nothing says how many


class ModelConfig(NamedTuple):
    """A model resource.

    Attributes:
        path: its concrete tree, absolute.
        version: ``sha256:`` and the archive's digest.
        runtime: its name; None: to be found by the files.
        requires: versions that must be installed, by name; ``runtime`` is the runtime's own.
    """

    id: str
    path: str
    version: str
    runtime: str | None
    options: Mapping[str, Any]
    requires: Mapping[str, str]


class Config(NamedTuple):
    """A worker's configuration.

    Attributes:
        function: its Id.
        code: its folder, absolute; None for a model endpoint.
        encoding: ``json`` or ``binary``, where a message's content type says nothing.
        meta: whether results that are objects get ``meta``.
        model: the resource Id that results name; None: none.
        deployment: the deployment's id; empty outside one.
        max_size, max_delay_s: of a batch.
        handler: the handler's name.
        state_dir: the function's own directory; absent: the working directory.
        concurrency: how many requests an async handler has under way at once.
        timeout_s: for one request in an async handler; None: for ever. A worker cannot stop any other handler: the
            agent stops the worker.
        secrets: ``{id, arn, versions}`` each.
        executable: Executable as the deployment has it; None: it has none.
        arn, core, memory_kb: FunctionArn, the core's name and MemorySize, for V1 code.
        captured: whether samples may be kept of what V1 code returns.
        arguments: what the code finds in ``sys.argv`` after its own name.
    """

    function: str
    code: str | None
    endpoint: bool
    encoding: str
    meta: bool
    model: str | None
    deployment: str
    models: tuple[ModelConfig, ...]
    max_size: int
    max_delay_s: float
    handler: str
    state_dir: str
    concurrency: int
    timeout_s: float | None
    secrets: tuple[Mapping[str, Any], ...] = ()
    executable: str | None = None
    arn: str = ""
    core: str = ""
    memory_kb: int | None = None
    captured: bool = False
    arguments: tuple[str, ...] = ()


def read(frame: Mapping[str, Any]) -> Config:
    """The CONFIG frame's map as a value; keys that are left out take their defaults."""
    batch = frame.get("batch") or {}
    return Config(
        function=frame["function"],
        code=frame.get("code"),
        endpoint=frame.get("endpoint", False),
        encoding=frame.get("encoding", "json"),
        meta=frame.get("meta", True),
        model=frame.get("model"),
        deployment=frame.get("deployment") or "",
        models=tuple(
            ModelConfig(
                m["id"], m["path"], m["version"], m.get("runtime"), m.get("options") or {}, m.get("requires") or {}
            )
            for m in frame.get("models", ())
        ),
        max_size=max(1, batch.get("max_size", 1)),
        max_delay_s=batch.get("max_delay_ms", 0) / 1000,
        handler=frame.get("handler") or "handler",
        state_dir=frame.get("state_dir") or os.getcwd(),
        concurrency=max(1, frame.get("concurrency") or CONCURRENCY),
        timeout_s=frame.get("timeout_s"),
        secrets=tuple(frame.get("secrets") or ()),
        executable=frame.get("handler"),
        arn=frame.get("arn") or "",
        core=frame.get("core") or "",
        memory_kb=frame.get("memory_kb"),
        captured=bool(frame.get("capture")),
        arguments=tuple(frame.get("arguments") or ()),
    )
