"""What comes of a request: results on their topics, an answer for who asked, errors, samples. Pure.

Links, spool and capture are ports; nothing here blocks, waits or makes a task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from agent.capture.settled import Hold, Settled
from agent.errors import AgentError, RejectedError
from agent.inference.requests import Answer, Failure, Request
from agent.messages import JSON, Outbound, Properties
from agent.routing.answers import (
    answer_topic_problem,
    error_payload,
    kind_of,
    origin_pairs,
    own_filters,
    provenance,
    read_envelope,
)
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.repeats import message_id
from agent.routing.subscriptions import FUNCTION, SHADOWS, Subscriptions
from agent.routing.topics import name_problem
from agent.settings import Topics
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class FunctionTraits:
    """What the exchange knows of a function.

    Attributes:
        encoding: content type of a payload that does not say its own.
        endpoint: it speaks the Open Inference Protocol, whose requests name their id at the top.
        captured: it has a capture policy.
    """

    encoding: str = JSON
    endpoint: bool = False
    captured: bool = False


NO_TRAITS = FunctionTraits()


class WaysOut(Protocol):
    def shadow(self, topic: str, payload: bytes, done: Callable[[], None]) -> None: ...
    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None]) -> None: ...
    def capture(self, settled: Settled, hold: Hold) -> None: ...


# What `Properties(..)` does, without a call in Python.
_properties: Callable[[tuple[object, ...]], Properties] = partial(tuple.__new__, Properties)
_outbound: Callable[[tuple[object, ...]], Outbound] = partial(tuple.__new__, Outbound)
PassOn = Callable[[str, str, str | None, bytes, Delivery, int], None]


class Outcomes:
    """Carries on what functions make of their requests.

    A request's ``context`` is the delivery that it belongs to, its ``hops`` how many functions it has gone through.

    Args:
        topics: where errors go.
        deliveries: the acknowledgement rule.
        ports: links, spool, shadows, capture.
        pass_on: runs a function on (its Id, topic, content type, payload) for a delivery, after so many hops.

    Attributes:
        own: filters over the agent's own topics, on which nobody is answered.
    """

    def __init__(self, topics: Topics, deliveries: Deliveries, ports: WaysOut, pass_on: PassOn) -> None:
        self.subscriptions = Subscriptions(())
        self.traits: Mapping[str, FunctionTraits] = {}
        self.one_link = False
        self.own = own_filters(topics)
        self._errors = topics.errors
        self._deliveries = deliveries
        self._ports = ports
        self._pass_on = pass_on

    def settle(self, request: Request, outcome: Answer | Failure) -> None:
        """Takes the one outcome of a request."""
        delivery: Delivery = request.context
        if type(outcome) is Failure:
            self.report(request, outcome)
            self._deliveries.release(delivery)
            return
        assert type(outcome) is Answer
        origin, request_id, reply_to, outputs, _, kept, _ = outcome
        if request_id != delivery.key and not request.hops:
            delivery.named = True
        user = (("request", request_id), *origin_pairs(origin.model, origin.version, origin.deployment))
        for topic, content_type, payload in outputs:
            if topic is None:  # below a topic that came in; its length is the link's to judge
                topic = f"{request.topic}/{request.function}"
            elif problem := name_problem(topic):
                error = RejectedError("BAD_RESULT_TOPIC", f"Function {request.function}: {problem}.")
                self._refuse(request, outcome, error)
                continue
            self._publish(request, outcome, topic, content_type, payload, user)
        if (reply_to or request.wants_answer) and not request.hops:
            self._respond(request, outcome, delivery, user)
        traits = self.traits.get(request.function)
        if kept or (traits is not None and traits.captured):
            self._capture(request, outcome, delivery)
        if delivery.open > 1:  # nearly always: for what was just sent
            delivery.open -= 1
        else:
            self._deliveries.release(delivery)

    def _publish(
        self,
        request: Request,
        answer: Answer,
        topic: str,
        content_type: str,
        payload: bytes,
        user: tuple[tuple[str, str], ...],
    ) -> None:
        function, delivery = request.function, request.context
        way = self.subscriptions.ways[FUNCTION + function, topic]
        for target in way.others:
            if target == SHADOWS:
                self.to_shadows(topic, payload, delivery)
                continue
            message = delivery.message
            qos = 1 if target == "cloud" else message.qos
            told = user
            if target == "cloud" or target != message.link:  # where it may come twice
                told = (*user, ("id", _id(delivery, function)))
            properties = _properties((content_type, None, None, None, told))
            try:
                self.send(target, "result", _outbound((topic, payload, qos, False, properties)), delivery)
            except RejectedError as error:
                self._refuse(request, answer, error)
        for function in way.functions:
            self._pass_on(function, topic, content_type, payload, delivery, request.hops + 1)

    def _refuse(self, request: Request, answer: Answer, error: AgentError) -> None:
        """A result that goes nowhere; its requester may have another one."""
        self.report(request, Failure(answer.origin, error, answer.request_id), answerable=False)

    def _respond(self, request: Request, answer: Answer, delivery: Delivery, user: tuple[tuple[str, str], ...]) -> None:
        if answer.outputs:
            _, content_type, payload = answer.outputs[0]
        elif answer.answer:
            content_type, payload = answer.answer
        else:
            return
        try:
            self._answer(delivery, answer.reply_to, content_type, payload, user)
        except AgentError as error:
            self.report(request, Failure(answer.origin, error, answer.request_id))

    def _answer(
        self,
        delivery: Delivery,
        reply_to: str | None,
        content_type: str,
        payload: bytes,
        user: tuple[tuple[str, str], ...],
    ) -> None:
        """To the requester, on the link that the request came from.

        Raises:
            RejectedError: BAD_RESPONSE_TOPIC, MESSAGE_TOO_LARGE.
        """
        message = delivery.message
        if delivery.respond is not None:
            delivery.respond(content_type, payload)
            return
        topic = message.properties.response_topic or reply_to
        problem = answer_topic_problem(topic, self.own)
        if problem is not None:
            raise problem
        assert topic is not None
        properties = Properties(content_type=content_type, correlation=message.properties.correlation, user=user)
        self.send(message.link, "result", Outbound(topic, payload, message.qos, properties=properties), delivery)

    def report(self, request: Request, failure: Failure, *, answerable: bool = True) -> None:
        """Says what went wrong, to the requester where there is one, else on the errors topic. Never silent."""
        delivery: Delivery = request.context
        if delivery.tell_failure is not None and not request.hops and answerable:
            delivery.tell_failure(failure.error)
            return
        delivery.failed = True
        message, traits = delivery.message, self.traits.get(request.function, NO_TRAITS)
        kind = kind_of(request.content_type, traits.encoding)
        named_id, named_reply = failure.request_id, failure.reply_to
        if named_id is None:
            named_id, named_reply = read_envelope(request.payload, kind, endpoint=traits.endpoint)
        user = provenance(named_id or request.id, failure.origin)
        content_type, payload = error_payload(failure.error, user, kind)
        answerable = answerable and request.hops == 0 and failure.error.code != "BAD_RESPONSE_TOPIC"
        if answerable and (request.wants_answer or named_reply):
            try:
                self._answer(delivery, named_reply, content_type, payload, user)
                return
            except RejectedError:
                pass  # nobody can be answered there: the errors topic hears of it
        topic = self._errors.replace("{function}", request.function)
        qos = 1 if message.link == "cloud" else message.qos
        out = Outbound(topic, payload, qos, properties=Properties(content_type=content_type, user=user))
        with contextlib.suppress(RejectedError):  # logged and counted by the outbox
            self.send(message.link, "result", out, delivery)

    def _capture(self, request: Request, answer: Answer, delivery: Delivery) -> None:
        settled = Settled(
            f"{delivery.key}-{request.function}",
            answer.origin,
            request.topic,
            (kind_of(request.content_type, self.traits.get(request.function, NO_TRAITS).encoding), request.payload),
            answer.outputs[0][1:] if answer.outputs else answer.answer if answer.returned else None,
            answer.kept,
        )
        self._ports.capture(settled, lambda: self._hold(delivery))

    def _hold(self, delivery: Delivery) -> Callable[[], None]:
        """Keeps a delivery open until what is given is called."""
        delivery.open += 1
        return lambda: self._deliveries.release(delivery)

    def to_shadows(self, topic: str, payload: bytes, delivery: Delivery) -> None:
        """Gives a message to the core's shadows."""
        delivery.open += 1
        self._ports.shadow(topic, payload, lambda: self._deliveries.release(delivery))

    def send(self, link: str, kind: str, out: Outbound, delivery: Delivery) -> None:
        """Sends what a delivery is then open for.

        Raises:
            RejectedError: the link's broker can never take it; the delivery is as before.
        """
        if self.one_link:
            link = "local"
        delivery.open += 1
        try:
            self._ports.send(link, kind, out, partial(self._deliveries.release, delivery))
        except RejectedError:
            delivery.open -= 1
            raise
        if delivery.sent is not None and link == delivery.message.link and kind == "result":
            delivery.sent.append((link, out))


def _id(delivery: Delivery, function: str) -> str:
    numbers = delivery.numbers = delivery.numbers or {}
    numbers[function] = numbers.get(function, 0) + 1
    return message_id(delivery, function, numbers[function])
