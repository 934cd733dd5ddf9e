"""Records a model's health check: runs it on samples in a worker of its own and keeps what comes out. Blocks.

For the command line. The worker is started as the agent starts one, on the interpreter that has the model's runtime, so
that the command itself needs neither numpy nor a runtime.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from agent.deployment.definition import HealthCheck
from agent.deployment.health import MAX_REQUESTS, encode, read_recorded
from agent.errors import AgentError, ConfigError, RejectedError
from agent.inference.launching import BOOT, base_environment, make_path
from agent.values import dataclass
from functions import frames

RESOURCE: Final = "model"
WORDS: Final = 3  # of the worker's last lines in a message
DEADLINE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be recorded.

    Attributes:
        samples: a JSON file: a list of ``{input: nested lists}``; None: nothing is run.
        runtime: the model's; None: found by its files.
        interpreter: the Python that has the runtime.
        tolerance: how far an output may be off, absolute and relative; None: the worker's default.
        max_latency_ms: the longest median of a request's runs; None: any.
        options: of the runtime, as the resource will have them.
        requires: versions that a core must have, by name.
    """

    samples: Path | None
    runtime: str | None = None
    interpreter: str = sys.executable
    tolerance: float | None = None
    max_latency_ms: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)


def record(directory: Path, wanted: Wanted) -> bytes:
    """The health check of the model in `directory`, as a package carries it.

    Raises:
        ConfigError: SAMPLES_INVALID, FILE_UNREADABLE, WORKER_NOT_STARTED.
        AgentError: what the model's worker says: why the model does not load, or which sample it does not take.
    """
    requests: tuple[Mapping[str, Any], ...] = ()
    if wanted.samples is not None:
        samples = _samples(wanted.samples)
        outputs = _outputs(directory.resolve(), samples, wanted)
        requests = tuple({"Inputs": i, "Outputs": o} for i, o in zip(samples, outputs, strict=True))
    bounds = wanted.tolerance, wanted.tolerance, wanted.max_latency_ms
    found = encode(HealthCheck(requests, *bounds, requires=wanted.requires))
    try:
        read_recorded(found)
    except RejectedError as error:
        raise _invalid(wanted.samples, error.message) from error
    return found


def _samples(file: Path) -> list[Mapping[str, Any]]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        text = f"{file} cannot be read: {error.strerror}."
        raise ConfigError("FILE_UNREADABLE", text, "Name a file that you may read.") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(file, f"it is not JSON: {error}") from error
    if not isinstance(values, list) or not all(isinstance(each, dict) and each for each in values):
        raise _invalid(file, "it is no list of objects")
    if not 1 <= len(values) <= MAX_REQUESTS:
        raise _invalid(file, f"it holds {len(values)} samples; 1 to {MAX_REQUESTS} can be recorded")
    return values


def _invalid(file: Path | None, why: str) -> ConfigError:
    if file is None:
        text = f"what the package is to require cannot be used: {why}."
        raise ConfigError(
            "REQUIREMENT_INVALID", text, "Write --requires runtime=1.9 or --requires 'numpy=>=1.23,<1.24'."
        )
    remedy = 'Write a list with the model\'s inputs by name for each sample: [{"data": [[0.1, 0.2]]}].'
    return ConfigError("SAMPLES_INVALID", f"{file} cannot be used: {why}.", remedy)


def describe(directory: Path, runtime: str | None, interpreter: str) -> dict[str, Any]:
    """Loads the model in `directory` and runs it once; returns what it is.

    Returns:
        ``{"runtime", "inputs", "outputs"}``, the latter two ``[[name, shape, dtype], ..]``, None for what is free.

    Raises:
        ConfigError: WORKER_NOT_STARTED.
        AgentError: why the model does not load.
    """
    with _loaded(directory.resolve(), runtime, interpreter) as (_, facts):
        [model] = facts["models"]
    return {key: model[key] for key in ("runtime", "inputs", "outputs")}


def _outputs(directory: Path, samples: list[Mapping[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
    with _loaded(directory, wanted.runtime, wanted.interpreter, wanted.options) as (child, _):
        child.send([frames.RECORD, 1, RESOURCE], json.dumps(samples).encode())
        (_, _, code, message), body = child.receive()
    if code is not None:
        raise AgentError(code, message)
    found: list[dict[str, Any]] = json.loads(body)
    return found


@contextlib.contextmanager
def _loaded(
    directory: Path, runtime: str | None, interpreter: str, options: Mapping[str, Any] | None = None
) -> Iterator[tuple[_Child, dict[str, Any]]]:
    """A worker that has loaded the model, and what its READY tells."""
    model = {"id": RESOURCE, "path": str(directory), "version": "", "runtime": runtime, "options": options}
    config = {"function": "package", "endpoint": True, "model": RESOURCE, "models": [model]}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as said,
        _Child(interpreter, Path(folder), said) as child,
    ):
        child.send([frames.CONFIG, config])
        header, _ = child.receive()
        if header[0] == frames.FAILED:
            _, code, message = header
            raise AgentError(code, message)
        yield child, header[1]


class _Child:
    """A worker process, spoken to over blocking sockets."""

    def __init__(self, interpreter: str, folder: Path, said: Any) -> None:
        self._said = said
        self._sock, theirs = socket.socketpair()
        self._pulse, their_pulse = socket.socketpair()
        self._sock.settimeout(DEADLINE_S)
        self._reader = frames.FrameReader()
        self._frames: deque[frames.Frame] = deque()
        fds = {"MARRAM_FD": theirs.fileno(), "MARRAM_PULSE_FD": their_pulse.fileno()}
        environment = {**base_environment(), **{name: str(fd) for name, fd in fds.items()}}
        try:
            self._process = subprocess.Popen(
                [interpreter, "-IBu", "-c", BOOT, str(make_path(folder))],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, cwd=folder,
                pass_fds=tuple(fds.values()),
            )  # fmt: skip
        except OSError as error:
            text = f"{interpreter} cannot be started: {error.strerror}."
            raise ConfigError("WORKER_NOT_STARTED", text, "Name a Python with --interpreter.") from error
        finally:
            theirs.close()
            their_pulse.close()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._sock.close()
        self._pulse.close()

    def send(self, header: list[Any], body: bytes = b"") -> None:
        """Sends a frame; that nobody takes it shows at the next `receive`."""
        try:
            frames.send_all(self._sock, frames.pack(header, body))
        except BrokenPipeError:
            pass

    def receive(self) -> frames.Frame:
        """The next frame.

        Raises:
            AgentError: WORKER_CRASHED, WORKER_HUNG.
        """
        while not self._frames:
            try:
                data = self._sock.recv(frames.READ_BYTES)
            except TimeoutError as error:
                raise AgentError("WORKER_HUNG", f"The model did not answer within {DEADLINE_S:g} s.") from error
            except ConnectionResetError:
                data = b""
            if not data:
                raise AgentError("WORKER_CRASHED", f"The model's worker ended. {self._last_words()}".strip())
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read()[-4096:].decode(errors="replace").splitlines()[-WORDS:]
        return f"Its last words: {' | '.join(lines)}" if lines else ""
