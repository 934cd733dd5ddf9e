"""Opening a connection to a broker: its address from the settings, DNS and TCP, and errors in plain words.

Names are looked up on a thread of their own, because a look-up cannot be cancelled and must delay neither the loop nor
its end; all the rest is asyncio's. Credentials appear in no message.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent import settings
from agent.errors import AgentError, ConfigError, TransientError
from agent.mqtt.codec import MalformedError
from agent.mqtt.stream import PacketStream
from agent.trust.secret_files import password_from, password_in
from agent.values import dataclass

TIMEOUT_S = 10.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker is and who we say we are.

    Attributes:
        tls: whether the connection is encrypted.
        password: never shown.
        certificate: the file of the one that we show.
        aws: whether it is AWS IoT Core.
    """

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    certificate: Path | None = None
    aws: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({self})"


def address_of(link: settings.Link) -> Address:
    """The broker's address as the settings give it; ``embedded`` is where the embedded broker is reached from here.

    Raises:
        ConfigError: BAD_BROKER_URL.
    """
    url = f"mqtt{'s' if link.tls else ''}://{link.listen}" if link.embedded else link.url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("mqtt", "mqtts") or not host:
        raise ConfigError(
            "BAD_BROKER_URL",
            f"The url of the link {link.name} is not one of a broker.",
            "Write mqtt://HOST:PORT, mqtts://HOST:PORT or the word embedded.",
        )
    encrypted = parts.scheme == "mqtts"
    username = link.username if link.username is not None else _unquoted(parts.username)
    password = link.password if link.password is not None else _unquoted(parts.password)
    host = ANY_ADDRESS.get(host, host) if link.embedded else host
    return Address(host, port or (8883 if encrypted else 1883), encrypted, username, password, link.cert, link.aws)


def with_login(link: settings.Link, address: Address) -> Address:
    """The address with the password that is in the link's file or environment variable now. Reads the file.

    Raises:
        ConfigError: PASSWORD_FILE, PASSWORD_FILE_LOOSE, PASSWORD_MISSING.
    """
    if link.password_file is not None:
        return replace(address, password=password_in(link.password_file))
    if link.password_env is not None:
        return replace(address, password=password_from(link.password_env))
    return address


def host_and_port(listen: str) -> tuple[str, int]:
    """Where the embedded broker listens, from the setting ``listen``; the port defaults to 1883.

    Raises:
        ConfigError: BAD_LISTEN.
    """
    try:
        parts = urlsplit(f"mqtt://{listen}")
        if parts.hostname and parts.port != 0 and not parts.path and parts.username is None:
            return parts.hostname, parts.port or 1883
    except ValueError:
        pass
    raise ConfigError("BAD_LISTEN", f"{listen!r} is no address to listen on.", "Write `listen: 127.0.0.1:1883`.")


async def open_stream(link: settings.Link, make: Callable[[], PacketStream]) -> PacketStream:
    """A connected stream, TLS included; tries each address that the broker's name has, `TIMEOUT_S` at most for each.

    Raises:
        TransientError: why not, in one sentence with a remedy.
    """
    address = address_of(link)
    context = None
    if link.tls:
        from agent.mqtt import tls  # ssl, and with it OpenSSL: only where a link is encrypted

        context = tls.context_of(link)
    problem: AgentError | None = None
    for ip in await _resolve(address):
        try:
            transport, stream = await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(
                    make, ip, address.port, ssl=context, server_hostname=address.host if context else None
                ),
                TIMEOUT_S,
            )
            try:
                if link.tls:
                    tls.check_pin(link, transport.get_extra_info("ssl_object"))
            except AgentError:
                stream.detach()
                raise
            return stream
        except (OSError, asyncio.TimeoutError) as error:
            problem = _explained(error, address)
            problem.__cause__ = error
    assert problem is not None
    raise problem


async def _resolve(address: Address) -> list[str]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(ips: list[str], error: OSError | None) -> None:
        if not answer.done():
            if error is None:
                answer.set_result(ips)
            else:
                answer.set_exception(error)

    def look_up() -> None:
        ips: list[str] = []
        problem: OSError | None = None
        try:
            # As bytes: Python turns a text into what DNS takes by a table of Unicode.
            host = address.host.encode() if address.host.isascii() else address.host
            found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
            ips = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        except (OSError, UnicodeError) as error:
            problem = error if isinstance(error, OSError) else OSError(str(error))
        try:
            loop.call_soon_threadsafe(settle, ips, problem)
        except RuntimeError:
            pass  # the loop has ended meanwhile

    threading.Thread(target=look_up, name="dns", daemon=True).start()
    try:
        return await asyncio.wait_for(answer, TIMEOUT_S)
    except (OSError, asyncio.TimeoutError) as error:
        raise TransientError(
            "BROKER_NAME_UNKNOWN",
            f"The name of the broker {address} cannot be resolved.",
            "Check the name, and that this device reaches its DNS server.",
        ) from error


def _explained(error: Exception, address: Address) -> AgentError:
    if address.tls:
        from agent.mqtt import tls  # it is loaded

        if found := tls.explained(error, address, address.certificate):
            return found
    return TransientError(
        "BROKER_UNREACHABLE",
        f"The broker {address} does not answer: {_reason(error)}.",
        "Check that it runs, and its host and port.",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError) or (isinstance(error, OSError) and error.errno == errno.ETIMEDOUT):
        return "timed out"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)


def _is_tls_end(error: Exception) -> bool:
    """Whether TLS says that the other end has closed; where no link is encrypted, nothing has loaded ssl."""
    return type(error).__name__ == "SSLZeroReturnError"


def ended(error: Exception | None, address: Address) -> AgentError:
    """Why a connection that stood has ended: closed by the broker (None), an error of TLS or TCP, or no MQTT."""
    if error is None or isinstance(error, (ConnectionResetError, BrokenPipeError)) or _is_tls_end(error):
        # AWS IoT Core gives no other answer to a client that it does not let in.
        remedy = "See that the certificate is active and that its policy allows iot:Connect with this client id."
        return TransientError("BROKER_CLOSED", f"{address} closed the connection.", remedy if address.aws else "")
    if isinstance(error, AgentError):
        return error
    if isinstance(error, MalformedError):
        return TransientError("BROKER_PROTOCOL", f"{address} does not speak proper MQTT: {error}.")
    return _explained(error, address)
