"""From the CONFIG frame to a worker that serves: code, models, warm-up, then READY or FAILED."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from functions import aside, config, frames, isolation, loading
from functions.errors import StartError
from functions.pulse import Pulse
from functions.runtimes.calling_home import stay_home
from functions.serving import Server

if TYPE_CHECKING:
    from functions.greengrass.entry import Entry
    from functions.runtimes.base import Model


def run(sock: socket.socket, pulse_sock: socket.socket, processors: Collection[int] = ()) -> None:
    """Configures the worker, serves until STOP or end of file, and ends the process.

    Args:
        processors: those that it comes back to, where it was set aside, ahead of any thread, process or library that
            would inherit or count what is left.
    """
    reader = frames.FrameReader()
    first = _first_frames(sock, reader)
    if not first:
        _end(0)
    if late := first[0][0][1].get("late"):
        _catch_up(late)
    if processors:
        aside.come_back(processors)
    try:
        entered = isolation.enter(first[0][0][1])  # ahead of any other thread, which would keep the old view
        pulse = Pulse(pulse_sock)
        settings = config.read(first[0][0][1])
        sys.argv = [settings.code or settings.function, *settings.arguments]
        entry = _lambda_entry(settings)
        gc.freeze()  # what is ours, so that the collection below takes less
        gc.enable()  # the function's own code comes now
        if entry is not None:
            _run_lambda(sock, reader, settings, entry, pulse=pulse, received=first[1:], facts=entered._asdict())
        server, facts = prepared(sock, reader, settings, keep=gc.freeze)
    except StartError as error:
        frames.send_all(sock, frames.pack([frames.FAILED, error.code, error.message]))
        _end(1)
    pulse.before = server.flush_if_free
    # What is loaded by now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        frames.send_all(sock, frames.pack([frames.READY, {**facts, **entered._asdict()}]))
        server.serve(first[1:])
        server.close()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the agent is gone
    _end(0)


def _catch_up(late: Mapping[str, Any]) -> None:
    """Takes what a worker whose process was started ahead of its function could not be started with.

    Args:
        late: ``{"environment": {name: value}, "directory": path}``.
    """
    os.environ.update(late["environment"])
    os.chdir(late["directory"])


def _lambda_entry(settings: config.Config) -> Entry | None:
    """Where V1 Lambda code begins; None: the function is of another kind.

    Raises:
        StartError: FUNCTION_NOT_FOUND.
    """
    if settings.code is None or not os.path.isdir(settings.code):
        return None
    from functions.greengrass.entry import find

    return find(settings.function, settings.code, settings.executable)


def _run_lambda(*args: Any, **more: Any) -> NoReturn:
    from functions.greengrass.running import run as run_lambda

    run_lambda(*args, end=_end, **more)


def _first_frames(sock: socket.socket, reader: frames.FrameReader) -> list[frames.Frame]:
    while data := sock.recv(frames.READ_BYTES):
        if found := reader.feed(data):
            return found
    return []


def prepared(
    sock: socket.socket,
    reader: frames.FrameReader,
    settings: config.Config,
    given: Mapping[str, Model] | None = None,
    keep: Callable[[], None] = lambda: None,
) -> tuple[Server, dict[str, Any]]:
    """A server whose code is imported and whose models are loaded and have run once, and what READY tells of it.

    Args:
        given: models that are loaded already, by their resource Ids.
        keep: called when numpy is imported, which leaves nothing to collect: to look through it takes 4 ms.

    Raises:
        StartError: why it can never serve.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a function prints is seen at once
    stay_home()  # ahead of the function's code, which may import dlr itself
    times = [time.monotonic()]
    code = loading.load(settings.function, settings.code, settings.handler) if settings.code else None
    times.append(time.monotonic())
    models = {**_models(settings, keep), **(given or {})}
    times.append(time.monotonic())
    _warm_up(models)
    times.append(time.monotonic())
    if code is None:
        code = _endpoint(settings, models)
    server = _server(code)(sock, reader, settings, code, models)
    import_s, load_s, warm_up_s = (round(b - a, 4) for a, b in itertools.pairwise(times))
    facts: dict[str, Any] = {"import_s": import_s, "load_s": load_s, "warm_up_s": warm_up_s}
    facts["settles_late"] = server.settles_late
    return server, {"models": _described(models), "max_batch": server.max_batch, **facts}


def _server(code: loading.Code) -> type[Server]:
    if not code.is_async:
        return Server
    from functions.serving_async import AsyncServer  # asyncio: only where it is used

    return AsyncServer


def _models(settings: config.Config, keep: Callable[[], None]) -> dict[str, Model]:
    if not settings.models:
        return {}
    with _uncollected():
        gc.collect()  # what the function's code has left: it is not looked for once it is kept
        try:
            import numpy  # noqa: F401
        except ImportError as error:
            python = sys.executable
            message = f"{python} cannot run models: {error}. Install numpy: {python} -m pip install numpy"
            raise StartError("INTERPRETER_INCOMPLETE", message) from error
        keep()
        from functions.runtimes.loading import load

        return {m.id: load(m.id, m.path, m.runtime, m.options, m.requires) for m in settings.models}


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within it, the garbage collector rests: see functions.worker."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _warm_up(models: dict[str, Model]) -> None:
    if models:
        from functions.runtimes.loading import warm_up

        for resource, model in models.items():
            warm_up(resource, model)


def _endpoint(settings: config.Config, models: dict[str, Model]) -> loading.Code:
    if len(models) != 1:
        names = ", ".join(models) or "none"
        raise StartError(
            "FUNCTION_NOT_FOUND",
            f"The function {settings.function} is a model endpoint: it serves exactly one model, and has: {names}.",
        )
    from functions.endpoint import Endpoint

    [resource] = models
    version = next((model.version for model in settings.models if model.id == resource), "")
    endpoint = Endpoint(resource, version, models[resource])
    return loading.Code(endpoint.handle, endpoint.handle_batch if endpoint.can_batch else None, alike=True)


def _described(models: dict[str, Model]) -> list[dict[str, Any]]:
    return [
        {
            "id": resource,
            "runtime": model.runtime,
            "inputs": [[spec.name, list(spec.shape), spec.dtype] for spec in model.inputs],
            "outputs": [[spec.name, list(spec.shape), spec.dtype] for spec in model.outputs],
        }
        for resource, model in models.items()
    ]


def _end(code: int) -> NoReturn:
    """Ends the process without waiting for threads that a function has left running, as Lambda code does."""
    atexit._run_exitfuncs()
    aside.leave()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)
