"""The processes that the demonstration starts: each ends with it, whatever becomes of it, and has a log of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import ConfigError

STOP_S = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)  # loaded before the fork: nothing may be imported between fork and exec


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Child:
    """One process, in a session of its own (Ctrl-C reaches the demonstration alone, which ends its children in order).

    Blocks: only in `wait_port` and `stop`.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_port(self, port: int, seconds: float = 30.0) -> None:
        """Returns when something accepts connections on 127.0.0.1:`port`.

        Raises:
            ConfigError: DEMO_CHILD_FAILED: the process ended, or the time is over.
        """
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise self.failure("did not open its port")

    def failure(self, what: str) -> ConfigError:
        """What went wrong with this process, with the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        state = "it runs" if self.running else f"it ended with {self._process.returncode}"
        text = "\n  ".join([f"the {self.name} {what} ({state}). Its last lines:", *lines])
        return ConfigError("DEMO_CHILD_FAILED", text, f"\nThe whole log: {self.log}")

    def stop(self) -> None:
        """Asks it to end; ends it by force when it does not. Idempotent."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
