"""The way of a message through the agent: in from a link, to its targets, and what comes of it out again. Pure.

Links, spool and functions are ports; nothing here blocks, waits or makes a task.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from agent.errors import AgentError, FunctionError, RejectedError
from agent.inference.capture import Capture, decide, sample
from agent.inference.dispatch import Answer, Failure, Origin, Request
from agent.messages import BINARY, JSON, MSGPACK, Inbound, Outbound, Properties
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.subscriptions import FUNCTION, Subscriptions
from agent.routing.topics import matches, name_problem
from agent.settings import Topics

MAX_HOPS = 16  # from function to function; a round of them ends with an error instead of never


@dataclass(frozen=True, slots=True)
class FunctionTraits:
    """What the exchange knows of a function.

    Attributes:
        encoding: content type of a payload that does not say its own.
        endpoint: it speaks the Open Inference Protocol, whose requests name their id at the top.
    """

    encoding: str = JSON
    endpoint: bool = False
    capture: Capture | None = None


NO_TRAITS = FunctionTraits()


class Ports(Protocol):
    def submit(self, request: Request) -> None: ...
    def ready(self, function: str) -> bool: ...
    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None]) -> None: ...
    def now(self) -> float: ...
    def timestamp(self) -> str: ...
    def random(self) -> float: ...


@dataclass(slots=True, eq=False)
class _Errand:
    """What a request belongs to: its delivery, and how many functions it has gone through."""

    delivery: Delivery
    hops: int


class Exchange:
    """Routes messages to functions and links and carries the outcomes on.

    Args:
        core: this core's name.
        topics: where errors and samples go.
        deliveries: the acknowledgement rule.
        ports: links, spool, functions, time.
        boot: makes the keys of this run differ from those of any other.
    """

    def __init__(self, core: str, topics: Topics, deliveries: Deliveries, ports: Ports, boot: str) -> None:
        self.subscriptions = Subscriptions(())
        self.traits: Mapping[str, FunctionTraits] = {}
        self.one_link = False
        self._topics = topics
        self._own = own_filters(topics)
        self._deliveries = deliveries
        self._ports = ports
        self._keys = (f"{core}-{boot}-{n}" for n in itertools.count(1))

    # -- in ---------------------------------------------------------------------------------------------------------

    def receive(self, message: Inbound) -> None:
        """Takes a message of a link and sees to its acknowledgement."""
        if self._deliveries.join(message):
            return
        targets = self.subscriptions.route(message.link, message.topic)
        self._open(Delivery(next(self._keys), message, targets))

    def restore(self, key: str, message: Inbound, targets: tuple[str, ...]) -> None:
        """Runs again what the inbox kept over a restart."""
        delivery = Delivery(key, message, targets)
        self._deliveries.restore(delivery)
        self._run(delivery)

    def invoke(self, function: str, message: Inbound, respond: Callable[[str, bytes], None]) -> None:
        """Runs one function for a requester that is no link; `respond` gets (content type, payload) of its answer."""
        delivery = Delivery(next(self._keys), message, (FUNCTION + function,))
        delivery.respond = respond
        self._open(delivery)

    def _open(self, delivery: Delivery) -> None:
        ready = all(self._ports.ready(t[len(FUNCTION) :]) for t in delivery.targets if t.startswith(FUNCTION))
        self._deliveries.begin(delivery, ready=ready)
        self._run(delivery)

    def _run(self, delivery: Delivery) -> None:
        message = delivery.message
        for target in delivery.targets:
            delivery.open += 1
            if target.startswith(FUNCTION):
                self._submit(
                    target[len(FUNCTION) :],
                    message.topic,
                    message.payload,
                    message.properties.content_type,
                    delivery,
                    0,
                )
            else:
                self._forward(target, message, delivery)
        self._deliveries.release(delivery)

    def _submit(
        self, function: str, topic: str, payload: bytes, content_type: str | None, delivery: Delivery, hops: int
    ) -> None:
        properties = delivery.message.properties
        direct = hops == 0
        expiry = properties.expiry_s
        request = Request(
            function=function,
            topic=topic,
            payload=payload,
            content_type=content_type,
            id=_correlation_text(properties.correlation) if direct and properties.correlation else delivery.key,
            settle=self._settle,
            wants_answer=direct and (properties.response_topic is not None or delivery.respond is not None),
            expires_s=None if expiry is None else delivery.message.received_s + expiry,
            context=_Errand(delivery, hops),
        )
        problem = self._answer_topic_problem(properties.response_topic) if direct else None
        if problem is not None:
            self._settle(request, Failure(Origin(function, None, None, None), problem))
        else:
            self._ports.submit(request)

    def _forward(self, link: str, message: Inbound, delivery: Delivery) -> None:
        properties = Properties(
            content_type=message.properties.content_type,
            response_topic=message.properties.response_topic,
            correlation=message.properties.correlation,
            expiry_s=message.properties.expiry_s,
            user=tuple(pair for pair in message.properties.user if pair[0] != "core"),
        )
        qos = 1 if link == "cloud" else message.qos
        self._send(link, "result", Outbound(message.topic, message.payload, qos, properties=properties), delivery)

    # -- out --------------------------------------------------------------------------------------------------------

    def _settle(self, request: Request, outcome: Answer | Failure) -> None:
        errand: _Errand = request.context
        if isinstance(outcome, Answer):
            self._carry_on(request, outcome, errand)
        else:
            self._report(request, outcome, errand)
        self._deliveries.release(errand.delivery)

    def _carry_on(self, request: Request, answer: Answer, errand: _Errand) -> None:
        properties = _result_user_properties(answer.request_id, answer.origin)
        for topic, content_type, payload in answer.outputs:
            self._publish(request, answer, errand, topic, content_type, payload, properties)
        self._respond(request, answer, errand, properties)
        self._capture(request, answer, errand)

    def _publish(
        self,
        request: Request,
        answer: Answer,
        errand: _Errand,
        topic: str | None,
        content_type: str,
        payload: bytes,
        user: tuple[tuple[str, str], ...],
    ) -> None:
        topic = f"{request.topic}/{request.function}" if topic is None else topic
        problem = name_problem(topic)
        if problem is not None:
            error = RejectedError("BAD_RESULT_TOPIC", f"Function {request.function}: {problem}.")
            self._report(request, Failure(answer.origin, error, answer.request_id, None), errand)
            return
        delivery = errand.delivery
        for target in self.subscriptions.route(FUNCTION + request.function, topic):
            if target.startswith(FUNCTION):
                self._pass_on(target[len(FUNCTION) :], topic, content_type, payload, errand)
            else:
                qos = 1 if target == "cloud" else delivery.message.qos
                properties = Properties(content_type=content_type, user=user)
                self._send(target, "result", Outbound(topic, payload, qos, properties=properties), delivery)

    def _pass_on(self, function: str, topic: str, content_type: str, payload: bytes, errand: _Errand) -> None:
        errand.delivery.open += 1
        if errand.hops < MAX_HOPS:
            self._submit(function, topic, payload, content_type, errand.delivery, errand.hops + 1)
            return
        request = Request(function, topic, payload, content_type, errand.delivery.key, self._settle)
        request.context = errand
        error = FunctionError(
            "TOO_MANY_HOPS", f"A message went through {MAX_HOPS} functions.", "Take the round out of the subscriptions."
        )
        self._settle(request, Failure(Origin(function, None, None, None), error))

    def _respond(self, request: Request, answer: Answer, errand: _Errand, user: tuple[tuple[str, str], ...]) -> None:
        if errand.hops:
            return
        if not (request.wants_answer or answer.reply_to):
            return
        if answer.outputs:
            _, content_type, payload = answer.outputs[0]
        elif answer.answer:
            content_type, payload = answer.answer
        else:
            return
        try:
            self._answer(request, errand.delivery, answer.reply_to, content_type, payload, user)
        except AgentError as error:
            self._report(request, Failure(answer.origin, error, answer.request_id, None), errand)

    def _answer(
        self,
        request: Request,
        delivery: Delivery,
        reply_to: str | None,
        content_type: str,
        payload: bytes,
        user: tuple[tuple[str, str], ...],
    ) -> None:
        """To the requester, on the link that the request came from.

        Raises:
            RejectedError: BAD_RESPONSE_TOPIC.
        """
        message = delivery.message
        if delivery.respond is not None:
            delivery.respond(content_type, payload)
            return
        topic = message.properties.response_topic or reply_to
        problem = self._answer_topic_problem(topic)
        if problem is not None:
            raise problem
        assert topic is not None
        properties = Properties(content_type=content_type, correlation=message.properties.correlation, user=user)
        self._send(message.link, "result", Outbound(topic, payload, message.qos, properties=properties), delivery)

    def _report(self, request: Request, failure: Failure, errand: _Errand) -> None:
        """Says what went wrong, to the requester where there is one, else on the errors topic. Never silent."""
        message = errand.delivery.message
        content_type = request.content_type or self._traits(request.function).encoding
        named_id, named_reply = (failure.request_id, failure.reply_to)
        if named_id is None:
            named_id, named_reply = read_envelope(
                request.payload, content_type, endpoint=self._traits(request.function).endpoint
            )
        request_id = named_id or request.id
        user = _result_user_properties(request_id, failure.origin)
        body = {"error": {"code": failure.error.code, "message": failure.error.text}, "meta": dict(user)}
        content_type, payload = (
            (MSGPACK, msgpack.packb(body)) if content_type == MSGPACK else (JSON, json.dumps(body).encode())
        )
        direct = errand.hops == 0 and failure.error.code != "BAD_RESPONSE_TOPIC"
        if direct and (request.wants_answer or named_reply):
            try:
                self._answer(request, errand.delivery, named_reply, content_type, payload, user)
                return
            except RejectedError:
                pass  # nobody can be answered there: the errors topic hears of it
        topic = self._topics.errors.replace("{function}", request.function)
        qos = 1 if message.link == "cloud" else message.qos
        self._send(
            message.link,
            "result",
            Outbound(topic, payload, qos, properties=Properties(content_type=content_type, user=user)),
            errand.delivery,
        )

    def _capture(self, request: Request, answer: Answer, errand: _Errand) -> None:
        traits = self._traits(request.function)
        if traits.capture is None:
            return
        reason = decide(traits.capture, self._ports.random)
        if reason is None:
            return
        body = sample(
            sample_id=f"{errand.delivery.key}-{request.function}",
            reason=reason,
            origin=answer.origin,
            topic=request.topic,
            timestamp=self._ports.timestamp(),
            given=(request.content_type or traits.encoding, request.payload),
            made=answer.outputs[0][1:] if answer.outputs else None,
        )
        topic = self._topics.capture.replace("{function}", request.function)
        self._send(
            "cloud", "capture", Outbound(topic, body, 1, properties=Properties(content_type=JSON)), errand.delivery
        )

    def _send(self, link: str, kind: str, out: Outbound, delivery: Delivery) -> None:
        delivery.open += 1
        link = "local" if self.one_link else link
        self._ports.send(link, kind, out, lambda: self._deliveries.release(delivery))

    def _traits(self, function: str) -> FunctionTraits:
        return self.traits.get(function, NO_TRAITS)

    def _answer_topic_problem(self, topic: str | None) -> RejectedError | None:
        if topic is None:
            return None
        problem = name_problem(topic)
        if problem is None and topic.startswith("$"):
            problem = f"the topic {topic!r} starts with '$'"
        if problem is None and any(matches(own, topic) for own in self._own):
            problem = f"the topic {topic!r} is one of the agent's own"
        return None if problem is None else RejectedError("BAD_RESPONSE_TOPIC", f"Nobody is answered there: {problem}.")


def own_filters(topics: Topics) -> tuple[str, ...]:
    """Filters over all topics that the agent itself uses, with ``+`` where a name is filled in."""
    templates = (topics.deployments, topics.deployment_status, topics.state, topics.capture, topics.errors)
    return tuple("/".join("+" if "{" in level else level for level in each.split("/")) for each in templates)


def read_envelope(payload: bytes, content_type: str, *, endpoint: bool = False) -> tuple[str | None, str | None]:
    """The id and reply topic that a payload names, where no worker could read it; None for what it does not name."""
    if content_type == BINARY:
        return None, None
    try:
        event: Any = msgpack.unpackb(payload) if content_type == MSGPACK else json.loads(payload)
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None, None
    if not isinstance(event, dict):
        return None, None
    meta = event.get("meta")
    named, reply_to = (meta.get("id"), meta.get("reply_to")) if isinstance(meta, dict) else (None, None)
    if endpoint and not isinstance(named, str):
        named = event.get("id")
    return (named if isinstance(named, str) else None, reply_to if isinstance(reply_to, str) else None)


def _correlation_text(correlation: bytes) -> str:
    try:
        return correlation.decode()
    except UnicodeDecodeError:
        return correlation.hex()


def _result_user_properties(request_id: str, origin: Origin) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("request", request_id),
        ("model", origin.model),
        ("version", origin.version),
        ("deployment", origin.deployment),
    )
    return tuple((name, value) for name, value in pairs if value is not None)
