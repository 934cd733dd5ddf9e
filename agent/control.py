"""The local socket through which the `marram` command talks to the agent on the same device.

One JSON object a line each way. A request is ``{"command": name, ..}``; its replies carry ``"last": true`` on the
last one and ``"error": {"code", "message"}`` where it failed. Only the user that the agent runs as can open the
socket (mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.errors import AgentError, ConfigError, RejectedError

log = logging.getLogger(__name__)

SOCKET = "agent.sock"
LOST_REMEDY = "Its log says why it ended; ask again when it runs."
MAX_LINE_BYTES = 32 * 1024 * 1024

Command = Callable[[Mapping[str, Any]], AsyncIterator[dict[str, Any]]]


class ControlServer:
    """Answers commands on `state`/agent.sock. Each command is an async iterator of replies."""

    def __init__(self, state: Path, commands: Mapping[str, Command]) -> None:
        self._state = state
        self._commands = commands
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(self._state) as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            mask = os.umask(0o177)
            try:
                sock.bind(path)
            finally:
                os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._state / SOCKET)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                async for reply in self._run(line):
                    writer.write(json.dumps(reply).encode() + b"\n")
                    await writer.drain()
        except (OSError, ValueError):
            pass  # the command went away, or sent a line without end
        finally:
            writer.close()

    async def _run(self, line: bytes) -> AsyncIterator[dict[str, Any]]:
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, LookupError, TypeError):
            yield failed(
                RejectedError("BAD_COMMAND", "The agent does not know this command.", "Use the agent's own version.")
            )
            return
        try:
            async for reply in command(request):
                yield reply
        except AgentError as error:
            yield failed(error)
        except Exception:
            log.exception("command %s", request["command"])
            yield failed(
                AgentError("INTERNAL", "The agent failed at this command.", "Its log says where; please report it.")
            )


def failed(error: AgentError) -> dict[str, Any]:
    """The last reply of a command that failed."""
    return {"error": {"code": error.code, "message": error.text}, "last": True}


def ask(state: Path, request: Mapping[str, Any], *, timeout_s: float | None = 60.0) -> Iterator[dict[str, Any]]:
    """Sends a command to the agent on `state` and yields its replies. Blocks; for the command line's process.

    Raises:
        ConfigError: AGENT_NOT_RUNNING.
        AgentError: what the agent answered, with its code; CONTROL_TIMEOUT, CONTROL_LOST.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            with _short_path(state) as path:
                sock.connect(path)
            sock.sendall(json.dumps(dict(request)).encode() + b"\n")
            with sock.makefile("rb") as lines:
                yield from _replies(lines)
        except TimeoutError as error:
            text = f"The agent did not answer within {timeout_s:g} s; what was asked for goes on."
            raise AgentError("CONTROL_TIMEOUT", text, "Look at `marram status`, or raise --timeout.") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ConfigError(
                "AGENT_NOT_RUNNING",
                f"No agent runs on the state directory {state}.",
                "Start one with `marram run`, or name its broker with --broker and --core.",
            ) from error
        except PermissionError as error:
            text = f"The state directory {state} is another user's, and so is its agent."
            raise ConfigError("AGENT_NOT_YOURS", text, "Use the command as that user (sudo -u).") from error
        except OSError as error:
            raise AgentError("CONTROL_LOST", f"The agent went away: {error}.", LOST_REMEDY) from error


def _replies(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise AgentError(reply["error"]["code"], reply["error"]["message"])
        yield reply
        if reply.get("last"):
            return
    raise AgentError("CONTROL_LOST", "The agent ended before it had answered.", LOST_REMEDY)


@contextlib.contextmanager
def _short_path(state: Path) -> Iterator[str]:
    """A path of the socket that fits a Unix address (107 bytes), however deep the state directory lies."""
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
