"""What the `marram` command does against a core: over its local socket, or from elsewhere over a broker. Blocks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack

from agent import control
from agent.cli.places import Far, Place
from agent.cli.remote import connected
from agent.errors import AgentError, ConfigError
from agent.messages import JSON, MSGPACK, Outbound, Properties
from agent.settings import Link as LinkSettings
from agent.settings.reader import load
from agent.values import dataclass

ANSWER_S = 5.0  # for the first sign of life of a core


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """An answer as it came; `error` is ``CODE: message`` where it says that the request could not be served."""

    content_type: str
    payload: bytes
    error: str | None


def document_bytes(file: Path) -> bytes:
    """A deployment document's bytes as they are sent: JSON and msgpack as they are, YAML turned into JSON.

    Raises:
        ConfigError: FILE_UNREADABLE, BAD_YAML.
    """
    try:
        body = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error
    if file.suffix.lower() not in (".yaml", ".yml"):
        return body
    import yaml

    try:
        return json.dumps(yaml.safe_load(body), default=str).encode()
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        remedy = "Correct the file; a document must be YAML that could also be written as JSON."
        raise ConfigError("BAD_YAML", f"{file} is no such YAML: {why}.", remedy) from error


def unreadable(file: Path, error: OSError) -> ConfigError:
    """That a file which the command line names cannot be read."""
    return ConfigError("FILE_UNREADABLE", f"{file} cannot be read: {error.strerror}.", "Name a file that you may read.")


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
    yield from _blocking(_deploy_over_broker(place.remote(), id, body, wait=wait, timeout_s=timeout_s))


def turn(config: Path, command: str, *, wait: bool, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Has the agent on this device roll back or cancel, and yields the statuses that come of it.

    Args:
        command: ``rollback`` or ``cancel``.

    Raises:
        AgentError: why it cannot.
    """
    for reply in control.ask(load(config, strict=False).state, {"command": command, "wait": wait}, timeout_s=timeout_s):
        yield reply["status"]


def captured(config: Path) -> dict[str, Any]:
    """What waits of samples on this device, by function and reason, and the counts of today."""
    *_, last = control.ask(load(config, strict=False).state, {"command": "capture"})
    return {"waiting": last["waiting"], "capture": last["capture"]}


def captured_messages(config: Path) -> Iterator[bytes]:
    """The samples that wait on this device, each as it will be published."""
    for reply in control.ask(load(config, strict=False).state, {"command": "capture", "whole": True}):
        yield from (base64.b64decode(each) for each in reply.get("samples", ()))


def heard_samples(place: Place, *, until: float) -> Iterator[bytes]:
    """The samples of a core that come over a broker until then, by the monotonic clock.

    Raises:
        ConfigError, AgentError: the broker cannot be used.
    """
    far = place.remote()
    loop = asyncio.new_event_loop()
    heard = _heard(far.link, far.filter("capture"), until)
    try:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield loop.run_until_complete(heard.__anext__())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _heard(settings: LinkSettings, topic: str, until: float) -> AsyncIterator[bytes]:
    async with connected(settings, topic) as remote:
        while (left := until - time.monotonic()) > 0:
            message = await remote.receive(left)
            if message is not None:
                yield message.payload


def dead_letters(config: Path, action: str | None, ids: list[int] | None) -> dict[str, Any]:
    """What waits in the spool of the agent on this device, and its dead letters.

    Args:
        action: ``retry`` or ``drop`` for the dead letters `ids` (None: all), which are listed then; None: neither.
    """
    found = next(control.ask(load(config, strict=False).state, {"command": "spool", "action": action, "ids": ids}))
    return {"spool": found["spool"], "letters": found["letters"]}


def _blocking(statuses: AsyncIterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What an asynchronous iterator gives, as it comes."""
    loop = asyncio.new_event_loop()
    try:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield loop.run_until_complete(statuses.__anext__())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _deploy_over_broker(
    far: Far, id: str, body: bytes, *, wait: bool, timeout_s: float
) -> AsyncIterator[dict[str, Any]]:
    deadline = time.monotonic() + timeout_s
    heard = False
    async with connected(far.link, far.topic("deployment_status", id)) as remote:
        await remote.publish(Outbound(far.topic("deployments"), body))
        while True:
            left = deadline - time.monotonic()
            message = await remote.receive(left if heard else min(left, ANSWER_S))
            if message is None:
                raise _silent(far.core, "It deploys this document if it comes back.") if not heard else _slow(far.core)
            status = _read(message.payload)
            yield status
            heard = True
            if not wait or status["status"] != "IN_PROGRESS":
                return


def status(place: Place) -> dict[str, Any]:
    """What the core runs: its state, and on this device the links' as well.

    Raises:
        AgentError: CORE_SILENT where the broker keeps no state of such a core.
    """
    if place.broker is None:
        return next(control.ask(place.settings().state, {"command": "status"}))
    return asyncio.run(_status_over_broker(place.remote()))


async def _status_over_broker(far: Far) -> dict[str, Any]:
    async with connected(far.link, far.topic("state")) as remote:
        message = await remote.receive(ANSWER_S)
        if message is None:
            raise _silent(far.core)
        return {"state": _read(message.payload)}


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
    return asyncio.run(_infer_over_broker(place.remote().link, payload, topic, content_type, timeout_s))


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
            "Send a JSON object, or ask on the core itself, without --broker.",
        ) from error
    return json.dumps(event).encode()


def _infer_answer(content_type: str, payload: bytes) -> InferAnswer:
    answer: Any = None
    with contextlib.suppress(ValueError, RecursionError, msgpack.UnpackException):
        if content_type in (JSON, MSGPACK):
            answer = json.loads(payload) if content_type == JSON else msgpack.unpackb(payload)
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and {"code", "message"} <= error.keys():
        return InferAnswer(content_type, payload, f"{error['code']}: {error['message']}")
    return InferAnswer(content_type, payload, None)


def _read(payload: bytes) -> dict[str, Any]:
    """A status or a state."""
    try:
        found = json.loads(payload)
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise AgentError("NOT_A_CORE", "What came on the core's topic is not from an agent.", "See who publishes there.")


def _silent(core: str, more: str = "") -> AgentError:
    remedy = (
        "Check --core against the core's topics.yaml, and that its agent runs, is connected to this broker and has the "
        "default topics (with others, give its topics.yaml with --config). "
    )
    return AgentError("CORE_SILENT", f"No core named {core!r} answers on this broker.", (remedy + more).strip())


def _slow(core: str) -> AgentError:
    text = f"The core {core!r} said nothing more in time; the deployment goes on."
    return AgentError("NO_ANSWER", text, "Look at `marram status`, or raise --timeout.")
