"""The embedded broker: amqtt in a process of its own, for a core that has no MQTT broker.

What it does not promise. It speaks MQTT 3.1.1 only: no response topics, user properties, message expiry or shared
subscriptions. It keeps nothing: no session, no queued and no retained message outlives its process, and it holds
nothing for a client that is away. It forgets a QoS 1 message that is not acknowledged within five seconds and does not
send it again. It carries no ``$aws`` topics. For anything of that, run mosquitto and give its url. Who is let in, and
what they may do, is `guarded`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import time

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from agent.errors import AgentError, ConfigError, TransientError
from agent.mqtt.connecting import host_and_port
from agent.mqtt.guard import Guard, access_of, server_tls

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
MAX_BACKOFF_S = 5.0
STABLE_S = 10.0
_PR_SET_PDEATHSIG = 1
_EX_CONFIG = 78
NO_GUARD = Guard()


class EmbeddedBroker:
    """The broker's process, started, watched and started again.

    Args:
        listen: ``host:port`` to listen on.
        guard: its certificate, users and rules; without, everybody is let in.
    """

    def __init__(self, listen: str, guard: Guard = NO_GUARD) -> None:
        self._listen = listen
        self._guard = guard
        self._host, self._port = host_and_port(listen)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Starts it and returns when it accepts connections; from then on it is started again whenever it ends.

        Raises:
            ConfigError: PORT_IN_USE, BAD_LISTEN, and as `check_guard`.
            TransientError: BROKER_START_FAILED.
        """
        check_listen(self._listen)
        check_guard(self._guard)
        await self._spawn()
        self._watch = asyncio.get_running_loop().create_task(self._keep(), name="embedded broker")

    async def stop(self) -> None:
        """Ends it. Idempotent."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            while not watch.done():
                watch.cancel()
                await asyncio.wait([watch], timeout=0.1)
        await self._end()

    async def _keep(self) -> None:
        while True:
            await AsyncRetrying(
                wait=wait_random_exponential(multiplier=0.1, max=MAX_BACKOFF_S),
                retry=retry_if_exception_type(AgentError),
                before_sleep=_log_failure,
            )(self._one_life)

    async def _one_life(self) -> None:
        """Waits for the process's end, starting one where there is none; raises where it did not live long."""
        if self.pid is None:
            await self._spawn()
        began = asyncio.get_running_loop().time()
        assert self._process is not None
        code = await self._process.wait()
        error = TransientError("BROKER_ENDED", f"The embedded broker has ended (code {code}); it is started again.")
        if asyncio.get_running_loop().time() - began < STABLE_S:
            raise error
        logger.error("%s", error)

    async def _spawn(self) -> None:
        # -c and not -m: the child finds the package where this process has it, whatever its working directory is.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from agent.mqtt.broker import serve; "
            f"serve({self._listen!r}, parent={os.getpid()})"
        )
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", code),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        process.stdin.write(self._guard.encoded())
        process.stdin.close()
        try:
            await asyncio.wait_for(self._accepting(process), START_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            await self._end()
            raise TransientError(
                "BROKER_START_FAILED",
                f"The embedded broker does not listen on {self._listen} after {START_TIMEOUT_S} s.",
            ) from error

    async def _accepting(self, process: asyncio.subprocess.Process) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(host, self._port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.02)
        if process.returncode == _EX_CONFIG:
            raise _port_in_use(self._listen)
        raise TransientError(
            "BROKER_START_FAILED",
            f"The embedded broker ended with code {process.returncode} at its start.",
            "Its last lines in the log say why.",
        )

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def check_listen(listen: str) -> None:
    """Whether one could listen there now.

    Raises:
        ConfigError: BAD_LISTEN, PORT_IN_USE.
    """
    host, port = host_and_port(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_in_use(listen) from error
        raise ConfigError(
            "BAD_LISTEN",
            f"The embedded broker cannot listen on {listen}: {error.strerror or error}.",
            "Set `listen: 127.0.0.1:PORT` on the link; ports below 1024 need privileges.",
        ) from error


def check_guard(guard: Guard) -> None:
    """Whether the broker's files can be used now. Reads them.

    Raises:
        ConfigError: BROKER_USERS, BROKER_ACL, BROKER_CERTIFICATE, KEY_FILE_LOOSE, PASSWORD_FILE_LOOSE.
    """
    access_of(guard.users, guard.acl)
    server_tls(guard)


def main(listen: str = "127.0.0.1:1883", guard: Guard = NO_GUARD) -> None:
    """Runs the broker in this process until SIGINT or SIGTERM: the command ``marram broker``.

    Raises:
        ConfigError: BAD_LISTEN, PORT_IN_USE, and as `check_guard`.
    """
    check_listen(listen)
    check_guard(guard)
    serve(listen, guard)


def serve(listen: str, guard: Guard | None = None, parent: int | None = None) -> None:
    """Runs amqtt in this process until a signal ends it.

    Args:
        guard: None: it comes on stdin.
        parent: the process to end with, to which the terminal's interrupt is left.
    """
    if parent is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return  # it ended before the line above
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.Formatter.converter = time.gmtime
        logging.basicConfig(level=logging.INFO, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s")
    guard = guard or Guard.decoded(sys.stdin.buffer.read())
    # amqtt logs each packet and, at shutdown and on every lost client, tracebacks that say nothing to a user.
    for name in ("amqtt", "transitions", "websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        listened = asyncio.run(_serve(listen, guard))
    except KeyboardInterrupt:
        return
    except ConfigError as error:
        logger.error("embedded broker: %s", error)
        sys.exit(1)
    if not listened:
        sys.exit(_EX_CONFIG)


async def _serve(listen: str, guard: Guard) -> bool:
    from agent.mqtt import guarded

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, ended.set)
    if not await guarded.serve(*host_and_port(listen), guard, ended):
        return False
    # amqtt's own shutdown waits up to five seconds for its broadcasts, and there is nothing to save.
    os._exit(0)


def _log_failure(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    logger.error("%s", error)


def _port_in_use(listen: str) -> ConfigError:
    return ConfigError(
        "PORT_IN_USE",
        f"The embedded broker cannot listen on {listen}: another program does.",
        "If that is an MQTT broker, give the link its url (mqtt://HOST:PORT) instead of `embedded`; else set `listen`.",
    )
