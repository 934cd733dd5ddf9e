"""The agent that may run here, the brokers of the links, and the certificates they are reached with. Blocks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Final

from agent import control
from agent.cli.remote import connected
from agent.doctor.delay import delay_s
from agent.doctor.findings import Finding, failed, ok, warned
from agent.errors import AgentError
from agent.mqtt.connecting import address_of, with_login
from agent.settings import Link, Settings
from agent.trust.certificates import SOON_S, day, validity

STALL_S: Final = 0.03  # a delayed acknowledgement is 40 ms on Linux
NEAR_S: Final = 0.02  # a broker further away is slow in its own right
PROTOCOLS: Final = {4: "3.1.1", 5: "5"}


def agent(settings: Settings) -> Iterator[Finding]:
    """Whether one runs, and whether its links are up."""
    try:
        status = next(control.ask(settings.state, {"command": "status"}, timeout_s=10.0))
    except AgentError as error:
        if error.code == "AGENT_NOT_RUNNING" or not settings.state.exists():
            yield ok("agent", "none runs on this state directory")
        else:
            yield warned("agent", error.message, error.remedy)
        return
    down = [
        f"{name}: {link['error'] or 'not connected'}" for name, link in status["links"].items() if not link["connected"]
    ]
    if down:
        yield failed("agent", f"It runs (pid {status['pid']}); {'; '.join(down)}.", "See what is said of the broker.")
    else:
        yield ok("agent", f"it runs (pid {status['pid']}), its links are up")


def links(settings: Settings) -> Iterator[Finding]:
    """Connects to each broker as the agent does, under another name."""
    for link in (settings.local, settings.cloud):
        if link is not None:
            yield from _embedded(link) if link.embedded else _broker(link)


def _embedded(link: Link) -> Iterator[Finding]:
    name, (host, port) = f"broker {link.name}", link.address
    try:
        with socket.create_connection((host, port), 2.0):
            yield ok(name, f"embedded, listens on {link.listen}")
            return
    except OSError:
        pass
    try:
        with socket.create_server((host, port), reuse_port=False):
            yield ok(name, f"embedded, {link.listen} is free for it")
    except OSError as error:
        remedy = f"Give `links.{link.name}` another `listen` in topics.yaml."
        yield failed(name, f"The embedded broker cannot listen on {link.listen}: {error.strerror}.", remedy)


def _broker(link: Link) -> Iterator[Finding]:
    name = f"broker {link.name}"
    began = time.perf_counter()
    try:
        protocol = asyncio.run(_protocol(link))
    except AgentError as error:
        yield failed(name, error.message, error.remedy, error.code)
        return
    took = time.perf_counter() - began
    said = f"{link.url} speaks MQTT {PROTOCOLS.get(protocol, '?')}, connected in {took * 1000:.0f} ms"
    if protocol == 4:
        remedy = "Use a broker with MQTT 5: without it there is no response-topic, content-type or user property."
        yield warned(name, said, remedy)
    else:
        yield ok(name, said)
    yield from _delay(link)


async def _protocol(link: Link) -> int:
    async with connected(link) as remote:
        return remote.link.protocol


def _delay(link: Link) -> Iterator[Finding]:
    """The stall that a broker without TCP_NODELAY gives to everybody who does as most clients do."""
    name = f"delay {link.name}"
    if link.tls:
        return
    try:
        near, took = delay_s(with_login(link, address_of(link)))
    except OSError:
        return  # it does not let us publish there: nothing to measure
    if near < NEAR_S and took > STALL_S:
        remedy = "With mosquitto, put `set_tcp_nodelay true` into its configuration and restart it."
        yield warned(
            name, f"A device waits {took * 1000:.0f} ms for a QoS 1 answer, of which 40 ms are a stall.", remedy
        )
    else:
        yield ok(name, f"a device waits {took * 1000:.1f} ms for a QoS 1 answer")


def certificates(settings: Settings) -> Iterator[Finding]:
    """How long the certificates are valid that the links name."""
    for link in (settings.local, settings.cloud):
        for kind, file in (("ca", link.ca), ("cert", link.cert)) if link is not None else ():
            if file is None:
                continue
            name = f"{kind} {link.name}" if link is not None else kind
            found = validity(file.read_bytes())
            problem = found.problem(time.time()) if found is not None else "cannot be read as X.509"
            if problem is not None or found is None:
                yield failed(name, f"The certificate {file} {problem}.", "Put a valid one in its place.")
            elif found.ends_s - time.time() < SOON_S:
                yield warned(name, f"{file} is valid until {day(found.ends_s)}.", "Renew it; the agent takes it up.")
            else:
                yield ok(name, f"{file} is valid until {day(found.ends_s)}")
