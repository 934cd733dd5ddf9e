"""Starts a real worker child over socket pairs, as the agent does, and speaks the wire to it."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np

import functions
from functions import frames

if TYPE_CHECKING:
    from agent.demo.formats import Layers

DEADLINE_S = 60.0
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from functions.worker import main; main()"
JSON, MSGPACK, BINARY = "application/json", "application/msgpack", "application/octet-stream"


class Outcome(NamedTuple):
    """A RESULT, JSON_RESULT or ERROR frame, taken apart.

    Attributes:
        outputs: (topic, content type, body) each.
        answer: (content type, body), where there is one of its own.
        error: (code, message) of an ERROR.
    """

    n: int
    request: str
    reply_to: str | None
    outputs: list[tuple[str | None, str, bytes]]
    answer: tuple[str, bytes] | None
    error: tuple[str, str] | None

    @property
    def json(self) -> Any:
        """The first output as JSON."""
        assert self.error is None, self.error
        return json.loads(self.outputs[0][2])


def opened(header: Sequence[Any], body: bytes) -> Outcome:
    """The outcome in a frame."""
    if header[0] == frames.JSON_RESULT:
        _, n, request = header
        return Outcome(n, request, None, [(None, JSON, body)], None, None)
    kind, n, request, reply_to = header[:4]
    if kind == frames.ERROR:
        assert not body
        return Outcome(n, request, reply_to, [], None, (header[4], header[5]))
    assert kind == frames.RESULT
    outputs, at = [], 0
    for topic, content_type, size in header[4]:
        outputs.append((topic, content_type, body[at : at + size]))
        at += size
    answer = (header[5][0], body[at : at + header[5][1]]) if header[5] else None
    assert at + (header[5][1] if header[5] else 0) == len(body)
    return Outcome(n, request, reply_to, outputs, answer, None)


def function_config(code: Path | None = None, **more: Any) -> dict[str, Any]:
    """A CONFIG map for the function ``test``, with `more` on top."""
    return {
        "function": "test",
        "code": str(code) if code else None,
        "endpoint": code is None,
        "encoding": "json",
        "meta": True,
        "model": None,
        "deployment": "",
        "models": [],
        "batch": {"max_size": 1, "max_delay_ms": 0},
        "handler": None,
        "capture": False,
        **more,
    }


def model_config(path: Path, resource: str = "net", **more: Any) -> dict[str, Any]:
    """The keys of a CONFIG map that give one model."""
    version = "sha256:" + "0" * 64
    model = {"id": resource, "path": str(path), "version": version, "runtime": None, "options": {}, **more}
    return {"model": resource, "models": [model]}


class WorkerChild:
    """A worker process. Use it as a context manager: it is ended at the end."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        interpreter: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        python_options: Sequence[str] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        os.symlink(Path(functions.__file__).parent, Path(self._folder.name, "functions"))
        self.sock, theirs = socket.socketpair()
        self.pulse, their_pulse = socket.socketpair()
        self.sock.settimeout(DEADLINE_S)
        self.pulse.settimeout(DEADLINE_S)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **(environment or {})}
        env |= {"MARRAM_FD": str(theirs.fileno()), "MARRAM_PULSE_FD": str(their_pulse.fileno())}
        self.process = subprocess.Popen(
            [interpreter, "-I", *python_options, "-c", BOOT, self._folder.name],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=(theirs.fileno(), their_pulse.fileno()),
            start_new_session=True,
        )
        theirs.close()
        their_pulse.close()
        self._reader = frames.FrameReader()
        self._frames: deque[frames.Frame] = deque()
        self._number = 0
        with suppress(BrokenPipeError):
            self.send(frames.pack([frames.CONFIG, dict(config)]))

    def __enter__(self) -> WorkerChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for each in (self.sock, self.pulse, self._output):
            each.close()
        self._folder.cleanup()

    @property
    def output(self) -> str:
        """What it has written to standard output and error so far."""
        self._output.seek(0)
        return self._output.read().decode()

    def send(self, *buffers: list[frames.Buffer]) -> None:
        frames.send_all(self.sock, [b for each in buffers for b in each])

    def next_frame(self) -> frames.Frame:
        """The next frame that it sends.

        Raises:
            EOFError: it has closed its end.
        """
        while not self._frames:
            data = self.sock.recv(frames.READ_BYTES)
            if not data:
                raise EOFError(self.output)
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def ready(self) -> dict[str, Any]:
        """Waits for READY; returns what it tells."""
        header, _ = self.next_frame()
        assert header[0] == frames.READY, (header, self.output)
        facts: dict[str, Any] = header[1]
        return facts

    def failed(self) -> tuple[str, str]:
        """Waits for FAILED and the process's end; returns code and message."""
        header, _ = self.next_frame()
        assert header[0] == frames.FAILED, header
        assert self.process.wait(DEADLINE_S) == 1
        return header[1], header[2]

    def request_frame(
        self, payload: Any, *, topic: str = "t", content_type: str | None = None, wanted: bool = False
    ) -> list[frames.Buffer]:
        """A REQUEST frame with the next number; `payload` is encoded as JSON unless it is bytes."""
        self._number += 1
        n = self._number
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return frames.pack([frames.REQUEST, n, topic, content_type, f"made-{n}", wanted], body)

    def ask(self, payload: Any, **more: Any) -> Outcome:
        """Sends one request and waits for what becomes of it."""
        self.send(self.request_frame(payload, **more))
        return self.outcome()

    def outcome(self) -> Outcome:
        """The next outcome."""
        return opened(*self.next_frame())

    def ask_pulse(self) -> str:
        self.pulse.send(b"?")
        where: str = msgpack.unpackb(self.pulse.recv(65536))
        return where

    def stop(self) -> int:
        """Sends STOP and waits for the end; returns the exit code."""
        self.send(frames.pack([frames.STOP]))
        return self.process.wait(DEADLINE_S)


def network(sizes: Sequence[int] = (16, 32, 3), seed: int = 0) -> Layers:
    """Random layers of a dense network, scaled so that different inputs give clearly different scores."""
    rng = np.random.default_rng(seed)
    return [
        ((rng.normal(size=(o, i)) * (2 / i) ** 0.5).astype(np.float32), rng.normal(size=o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]


def by_hand(layers: Layers, x: Any) -> Any:
    """What the network gives, computed with numpy alone."""
    x = np.asarray(x, np.float64)
    for k, (weights, bias) in enumerate(layers):
        x = x @ weights.T + bias
        if k < len(layers) - 1:
            x = np.maximum(x, 0)
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def write_function(folder: Path, source: str, **siblings: str) -> Path:
    """A function's folder with `source` as its __init__.py, and further modules beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(source)
    for name, text in siblings.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def bare_interpreter(folder: Path, *packages: str) -> str:
    """A Python with nothing installed but `packages`, borrowed from the tests' own environment."""
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    for name in packages:
        source = Path(importlib.import_module(name).__file__ or "").parent
        for each in (source, source.with_name(f"{name}.libs")):
            if each.exists():
                (site / each.name).symlink_to(each)
    return str(folder / "bin" / "python")


def until(condition: Callable[[], bool]) -> None:
    """Polls for what has no event to wait for; fails after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
