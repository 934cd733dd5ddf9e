"""What the `marram` command does against a core: over its local socket, or from elsewhere over a broker. Blocks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agent import control
from agent.errors import AgentError, ConfigError
from agent.messages import JSON, Outbound, Properties
from agent.remote import connected
from agent.settings import Link as LinkSettings
from agent.settings import Settings, load

PORTS = {"mqtt": 1883, "mqtts": 8883}
ANSWER_S = 5.0  # for the first sign of life of a core
DEFAULT_TOPICS = {
    "deployments": "marram/{core}/deployments",
    "deployment_status": "marram/{core}/deployments/{deployment}/status",
    "state": "marram/{core}/state",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the core is: on this device (`config` tells its state directory), or behind a broker."""

    config: Path
    broker: str | None = None
    core: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def settings(self) -> Settings:
        return load(self.config)

    def remote(self) -> tuple[LinkSettings, str]:
        """The broker and the core's name.

        Raises:
            ConfigError: CORE_MISSING, BAD_URL.
        """
        assert self.broker is not None
        if not self.core:
            raise ConfigError("CORE_MISSING", "--broker needs --core.", "Name the core as its topics.yaml does.")
        return self._link(self.broker), self.core

    def _link(self, broker: str) -> LinkSettings:
        try:
            parts = urlsplit(broker)
            host, port = parts.hostname, parts.port or PORTS[parts.scheme]
        except (ValueError, LookupError):
            host, port = None, 0
        if not host:
            raise ConfigError("BAD_URL", "--broker is no broker's URL.", "Write mqtt://host:1883 or mqtts://host:8883.")
        return LinkSettings(
            "cloud",
            f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}",
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


@dataclass(frozen=True, slots=True)
class InferAnswer:
    content_type: str
    payload: bytes
    failed: bool


def document_bytes(file: Path) -> bytes:
    """A deployment document's bytes as they are sent: JSON and msgpack as they are, YAML turned into JSON.

    Raises:
        ConfigError: FILE_UNREADABLE, BAD_YAML.
    """
    try:
        body = file.read_bytes()
    except OSError as error:
        raise ConfigError("FILE_UNREADABLE", f"{file} cannot be read: {error.strerror}.") from error
    if file.suffix.lower() not in (".yaml", ".yml"):
        return body
    import yaml

    try:
        return json.dumps(yaml.safe_load(body), default=str).encode()
    except yaml.YAMLError as error:
        raise ConfigError("BAD_YAML", f"{file} is not YAML: {error}") from error


def deploy(place: Place, body: bytes, *, wait: bool, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Sends a document and yields the statuses that come of it: the first one, or with `wait` all until the end.

    Raises:
        AgentError: what hinders it, CORE_SILENT where no core answers.
    """
    from agent.deployment.document import deployment_id_of

    id = deployment_id_of(body)
    if place.broker is None:
        request = {"command": "deploy", "body": base64.b64encode(body).decode(), "id": id, "wait": wait}
        for reply in control.ask(place.settings().state, request, timeout_s=timeout_s):
            yield reply["status"]
        return
    settings, core = place.remote()
    yield from asyncio.run(_deploy_over_broker(settings, core, id, body, wait=wait, timeout_s=timeout_s))


async def _deploy_over_broker(
    settings: LinkSettings, core: str, id: str, body: bytes, *, wait: bool, timeout_s: float
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + timeout_s
    statuses: list[dict[str, Any]] = []
    async with connected(settings, _topic("deployment_status", core, id)) as remote:
        await remote.publish(Outbound(_topic("deployments", core), body))
        while True:
            left = min(deadline - time.monotonic(), ANSWER_S if not statuses else timeout_s)
            message = await remote.receive(left)
            if message is None:
                raise _silent(core, bool(statuses))
            status = json.loads(message.payload)
            statuses.append(status)
            if not wait or status["status"] != "IN_PROGRESS":
                return statuses


def status(place: Place) -> dict[str, Any]:
    """What the core runs: its state, and on this device the links' as well.

    Raises:
        AgentError: CORE_SILENT where the broker keeps no state of such a core.
    """
    if place.broker is None:
        return next(control.ask(place.settings().state, {"command": "status"}))
    return asyncio.run(_status_over_broker(*place.remote()))


async def _status_over_broker(settings: LinkSettings, core: str) -> dict[str, Any]:
    async with connected(settings, _topic("state", core)) as remote:
        message = await remote.receive(ANSWER_S)
        if message is None:
            raise _silent(core, False)
        return {"state": json.loads(message.payload)}


def infer(
    place: Place, function: str, payload: bytes, *, topic: str | None, content_type: str | None, timeout_s: float
) -> InferAnswer:
    """Sends one request and returns its answer.

    Raises:
        AgentError: TOPIC_MISSING, NO_ANSWER, MQTT_5_NEEDED and whatever hinders the connection.
    """
    if place.broker is None:
        request = {
            "command": "infer",
            "function": function,
            "topic": topic or f"infer/{function}",
            "payload": base64.b64encode(payload).decode(),
            "content_type": content_type,
        }
        reply = next(control.ask(place.settings().state, request, timeout_s=timeout_s))
        return _infer_answer(reply["content_type"], base64.b64decode(reply["payload"]))
    if topic is None:
        raise ConfigError(
            "TOPIC_MISSING", "--broker needs --topic.", "Name a topic that the function is subscribed to."
        )
    settings, _ = place.remote()
    return asyncio.run(_infer_over_broker(settings, payload, topic, content_type, timeout_s))


async def _infer_over_broker(
    settings: LinkSettings, payload: bytes, topic: str, content_type: str | None, timeout_s: float
) -> InferAnswer:
    reply_to = f"marram-command/{secrets.token_hex(6)}"
    async with connected(settings, reply_to) as remote:
        if remote.link.protocol == 4:
            payload = _with_reply_to(payload, reply_to)
        properties = Properties(content_type=content_type, response_topic=reply_to, correlation=remote.name.encode())
        await remote.publish(Outbound(topic, payload, properties=properties))
        message = await remote.receive(timeout_s)
    if message is None:
        raise AgentError(
            "NO_ANSWER", f"No answer within {timeout_s:g} s.", "Check --topic against the core's subscriptions."
        )
    return _infer_answer(message.properties.content_type or JSON, message.payload)


def _with_reply_to(payload: bytes, reply_to: str) -> bytes:
    """The request with the answer's topic in it: MQTT 3.1.1 has no response-topic property."""
    try:
        event = json.loads(payload)
        event.setdefault("meta", {})["reply_to"] = reply_to
    except (ValueError, AttributeError, TypeError) as error:
        raise AgentError(
            "MQTT_5_NEEDED",
            "This broker speaks MQTT 3.1.1 only, where the payload must be a JSON object to be answered.",
        ) from error
    return json.dumps(event).encode()


def _infer_answer(content_type: str, payload: bytes) -> InferAnswer:
    failed = False
    if content_type == JSON:
        with contextlib.suppress(ValueError):
            answer = json.loads(payload)
            failed = isinstance(answer, dict) and isinstance(answer.get("error"), dict)
    return InferAnswer(content_type, payload, failed)


def _topic(name: str, core: str, deployment: str = "") -> str:
    return DEFAULT_TOPICS[name].replace("{core}", core).replace("{deployment}", deployment)


def _silent(core: str, began: bool) -> AgentError:
    if began:
        return AgentError("NO_ANSWER", f"The core {core!r} said nothing more in time.", "Look at `marram status`.")
    return AgentError(
        "CORE_SILENT",
        f"No core named {core!r} answers on this broker.",
        "Check --core against the core's topics.yaml, and that its agent runs and is connected to this broker.",
    )
