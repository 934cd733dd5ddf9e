"""The way of a message through the agent: in from a link, to its targets, and what comes of it out again. Pure.

Links, spool and functions are ports; nothing here blocks, waits or makes a task.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from agent.capture.settled import Hold, Settled
from agent.errors import AgentError, FunctionError, RejectedError
from agent.inference.requests import Answer, Failure, Origin, Request
from agent.messages import JSON, Inbound, Outbound, Properties
from agent.routing.answers import (
    answer_topic_problem,
    correlation_text,
    error_payload,
    kind_of,
    own_filters,
    provenance,
    read_envelope,
)
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.repeats import Repeats, message_id
from agent.routing.subscriptions import FUNCTION, LINKS, SHADOWS, Subscriptions, function_of
from agent.routing.topics import name_problem
from agent.settings import AnswerLimits, Topics
from agent.values import dataclass

MAX_HOPS = 16  # from function to function; a round of them ends with an error instead of never


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


class Ports(Protocol):
    def submit(self, request: Request) -> None: ...
    def ready(self, function: str) -> bool: ...
    def has_room(self, function: str, size: int) -> bool: ...
    def shadow(self, topic: str, payload: bytes, done: Callable[[], None]) -> None: ...
    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None]) -> None: ...
    def now(self) -> float: ...
    def capture(self, settled: Settled, hold: Hold) -> None: ...


@dataclass(slots=True, eq=False)
class _Errand:
    """What a request belongs to: its delivery, and how many functions it has gone through."""

    delivery: Delivery
    hops: int


class Exchange:
    """Routes messages to functions and links and carries the outcomes on.

    Args:
        core: this core's name.
        topics: where errors go.
        deliveries: the acknowledgement rule.
        ports: links, spool, functions, time.
        boot: makes the keys of this run differ from those of any other.
        answers: what is remembered for who asks again.

    Attributes:
        expired: messages from link to link whose expiry ran out here.
    """

    def __init__(
        self,
        core: str,
        topics: Topics,
        deliveries: Deliveries,
        ports: Ports,
        boot: str,
        answers: AnswerLimits = AnswerLimits(),  # noqa: B008 -- frozen
    ) -> None:
        self.subscriptions = Subscriptions(())
        self.traits: Mapping[str, FunctionTraits] = {}
        self.one_link = False
        self._topics = topics
        self._own = own_filters(topics)
        self._deliveries = deliveries
        self._repeats = Repeats(answers, ports.now)
        deliveries.on_over = self._repeats.over
        self._ports = ports
        self.expired = 0
        self._keys = (f"{core}-{boot}-{n}" for n in itertools.count(1))

    # -- in ---------------------------------------------------------------------------------------------------------

    def receive(self, message: Inbound) -> None:
        """Takes a message of a link and sees to its acknowledgement."""
        if self._deliveries.join(message):
            return
        targets = self.subscriptions.route(message.link, message.topic)
        delivery = Delivery(next(self._keys), message, targets)
        for target in targets:
            if function_of(target) is not None:
                if self._answer_again(delivery):
                    return
                self._repeats.begin(delivery)
                break
        self._open(delivery)

    def _for_endpoints(self, delivery: Delivery) -> bool:
        functions = (target[len(FUNCTION) :] for target in delivery.targets if target.startswith(FUNCTION))
        return all(self.traits.get(function, NO_TRAITS).endpoint for function in functions)

    @property
    def answered_again(self) -> int:
        """Requests that came again and were not run again."""
        return self._repeats.answered

    def forget_answers(self) -> None:
        """Another group is in use: what is asked again from now on is run again."""
        self._repeats.forget()

    def _answer_again(self, delivery: Delivery) -> bool:
        """Whether it is a request that was run already, or is now; it is seen to then."""
        sent = self._repeats.outcome(delivery.message)
        first = (
            self._repeats.under_way(delivery.message, endpoint=self._for_endpoints(delivery)) if sent is None else None
        )
        if sent is None and first is None:
            return False
        delivery.targets = ()  # nothing to run, after a restart either
        self._deliveries.begin(delivery, ready=True)
        if first is not None:
            first.followers = [*(first.followers or ()), delivery]
            return True
        for link, out in sent or ():
            with contextlib.suppress(RejectedError):  # logged and counted by the outbox
                self._send(link, "result", out, delivery)
        self._deliveries.release(delivery)
        return True

    def restore(self, key: str, message: Inbound, targets: tuple[str, ...]) -> None:
        """Runs again what the inbox kept over a restart."""
        delivery = Delivery(key, message, targets)
        if any(target.startswith(FUNCTION) for target in targets):
            self._repeats.begin(delivery)
        self._deliveries.restore(delivery)
        self._run(delivery)

    def invoke(self, function: str, message: Inbound, respond: Callable[[str, bytes], None]) -> None:
        """Runs one function for a requester that is no link; `respond` gets (content type, payload) of its answer."""
        delivery = Delivery(next(self._keys), message, (FUNCTION + function,))
        delivery.respond = respond
        self._open(delivery)

    def call(
        self,
        function: str,
        message: Inbound,
        client_context: str,
        *,
        hops: int,
        respond: Callable[[str, bytes], None] | None,
        failed: Callable[[AgentError], None] | None,
    ) -> None:
        """Runs one function for another; never through a broker.

        Args:
            hops: how many functions have led to this call.
            respond: gets (content type, payload) of the answer; None: nobody waits.
            failed: gets the error, in place of the errors topic.
        """
        delivery = Delivery(next(self._keys), message, (FUNCTION + function,))
        delivery.respond, delivery.tell_failure = respond, failed
        delivery.hops, delivery.client_context = hops, client_context
        self._open(delivery)

    def publish(self, source: str, message: Inbound, *, hops: int = 0, strict: bool = False) -> None:
        """Carries what a function (or the shadows) publishes by itself along the subscriptions.

        Args:
            source: as subscriptions name it.
            hops: how many functions have led to it.
            strict: all of its targets get it, or none does.

        Raises:
            RejectedError: BAD_RESULT_TOPIC; with `strict`, MESSAGE_TOO_LARGE.
            FunctionError: with `strict`, OVERLOADED.
        """
        problem = name_problem(message.topic)
        if problem is not None:
            raise RejectedError("BAD_RESULT_TOPIC", f"{source}: {problem}.")
        targets = self.subscriptions.route(source, message.topic)
        delivery = Delivery(next(self._keys), message, targets)
        delivery.hops = hops
        functions = [target[len(FUNCTION) :] for target in targets if target.startswith(FUNCTION)]
        full = [f for f in functions if strict and not self._ports.has_room(f, len(message.payload))]
        if full:
            raise FunctionError("OVERLOADED", f"Function {full[0]} takes no more messages now.", "Publish it later.")
        self._deliveries.begin(delivery, ready=True)
        try:
            for link in (target for target in targets if target in LINKS):
                self._forward(link, message, delivery, strict=strict)
            if SHADOWS in targets:
                self._to_shadows(message.topic, message.payload, delivery)
            for function in functions:
                content_type, errand = message.properties.content_type, _Errand(delivery, 0)
                self._pass_on(function, message.topic, content_type, message.payload, errand)
        finally:
            self._deliveries.release(delivery)

    def _open(self, delivery: Delivery) -> None:
        ready = True
        for target in delivery.targets:
            name = function_of(target)
            ready = ready and (name is None or self._ports.ready(name))
        self._deliveries.begin(delivery, ready=ready)
        self._run(delivery)

    def _run(self, delivery: Delivery) -> None:
        message = delivery.message
        for target in delivery.targets:
            name = function_of(target)
            if target == SHADOWS:
                self._to_shadows(message.topic, message.payload, delivery)
            elif name is None:
                self._forward(target, message, delivery)
            else:
                delivery.open += 1
                self._submit(name, message.topic, message.payload, message.properties.content_type, delivery, 0)
        self._deliveries.release(delivery)

    def _submit(
        self, function: str, topic: str, payload: bytes, content_type: str | None, delivery: Delivery, hops: int
    ) -> None:
        properties = delivery.message.properties
        direct = hops == 0
        expiry = properties.expiry_s
        wanted = properties.response_topic
        request = Request(
            function,
            topic,
            payload,
            content_type,
            correlation_text(properties.correlation) if direct and properties.correlation else delivery.key,
            self._settle,
            direct and (wanted is not None or delivery.respond is not None),
            None if expiry is None else delivery.message.received_s + expiry,
            _Errand(delivery, hops),
            client_context=delivery.client_context if direct else None,
            # By an earlier run, or by a broker that gave us more than we had asked for.
            admitted=direct
            and (
                (delivery.inboxed and delivery.acked)
                or (not delivery.acked and self._deliveries.over_window(delivery.message.link))
            ),
        )
        problem = answer_topic_problem(wanted, self._own) if direct and wanted is not None else None
        if problem is not None:
            self._settle(request, Failure(Origin(function, None, None, None), problem))
        else:
            self._ports.submit(request)

    def _to_shadows(self, topic: str, payload: bytes, delivery: Delivery) -> None:
        delivery.open += 1
        self._ports.shadow(topic, payload, lambda: self._deliveries.release(delivery))

    def _forward(self, link: str, message: Inbound, delivery: Delivery, *, strict: bool = False) -> None:
        expiry_s = message.properties.expiry_s
        if expiry_s is not None:
            expiry_s = math.ceil(message.received_s + expiry_s - self._ports.now())
            if expiry_s <= 0:
                self.expired += 1
                return
        properties = Properties(
            content_type=message.properties.content_type,
            response_topic=message.properties.response_topic,
            correlation=message.properties.correlation,
            expiry_s=expiry_s,
            user=tuple(pair for pair in message.properties.user if pair[0] != "core"),
        )
        qos = 1 if link == "cloud" else message.qos
        try:
            self._send(link, "result", Outbound(message.topic, message.payload, qos, properties=properties), delivery)
        except RejectedError:
            if strict:
                raise  # else it is enough that the outbox has logged and counted it

    # -- out --------------------------------------------------------------------------------------------------------

    def _settle(self, request: Request, outcome: Answer | Failure) -> None:
        errand: _Errand = request.context
        if isinstance(outcome, Answer):
            errand.delivery.named |= not errand.hops and outcome.request_id != errand.delivery.key
            self._carry_on(request, outcome, errand)
        else:
            self._report(request, outcome, errand)
        self._deliveries.release(errand.delivery)

    def _carry_on(self, request: Request, answer: Answer, errand: _Errand) -> None:
        properties = provenance(answer.request_id, answer.origin)
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
        problem = None
        if topic is None:
            topic = f"{request.topic}/{request.function}"  # of a topic that came in; its length is the link's to judge
        else:
            problem = name_problem(topic)
        if problem is not None:
            error = RejectedError("BAD_RESULT_TOPIC", f"Function {request.function}: {problem}.")
            self._report(request, Failure(answer.origin, error, answer.request_id), errand, answerable=False)
            return
        delivery = errand.delivery
        for target in self.subscriptions.route(FUNCTION + request.function, topic):
            name = function_of(target)
            if name is not None:
                self._pass_on(name, topic, content_type, payload, errand)
            elif target == SHADOWS:
                self._to_shadows(topic, payload, delivery)
            else:
                qos = 1 if target == "cloud" else delivery.message.qos
                travels = target == "cloud" or target != delivery.message.link
                told = (*user, ("id", self._id(delivery, request.function))) if travels else user
                properties = Properties(content_type=content_type, user=told)
                try:
                    self._send(target, "result", Outbound(topic, payload, qos, properties=properties), delivery)
                except RejectedError as error:
                    self._report(request, Failure(answer.origin, error, answer.request_id), errand, answerable=False)

    def _id(self, delivery: Delivery, function: str) -> str:
        numbers = delivery.numbers = delivery.numbers or {}
        numbers[function] = numbers.get(function, 0) + 1
        return message_id(delivery, function, numbers[function])

    def _pass_on(self, function: str, topic: str, content_type: str | None, payload: bytes, errand: _Errand) -> None:
        errand.delivery.open += 1
        if errand.delivery.hops + errand.hops < MAX_HOPS:
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
            self._answer(errand.delivery, answer.reply_to, content_type, payload, user)
        except AgentError as error:
            self._report(request, Failure(answer.origin, error, answer.request_id), errand)

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
        problem = answer_topic_problem(topic, self._own)
        if problem is not None:
            raise problem
        assert topic is not None
        properties = Properties(content_type=content_type, correlation=message.properties.correlation, user=user)
        self._send(message.link, "result", Outbound(topic, payload, message.qos, properties=properties), delivery)

    def _report(self, request: Request, failure: Failure, errand: _Errand, *, answerable: bool = True) -> None:
        """Says what went wrong, to the requester where there is one, else on the errors topic. Never silent."""
        if errand.delivery.tell_failure is not None and not errand.hops and answerable:
            errand.delivery.tell_failure(failure.error)
            return
        errand.delivery.failed = True
        message, traits = errand.delivery.message, self._traits(request.function)
        kind = kind_of(request.content_type, traits.encoding)
        named_id, named_reply = failure.request_id, failure.reply_to
        if named_id is None:
            named_id, named_reply = read_envelope(request.payload, kind, endpoint=traits.endpoint)
        user = provenance(named_id or request.id, failure.origin)
        content_type, payload = error_payload(failure.error, user, kind)
        answerable = answerable and errand.hops == 0 and failure.error.code != "BAD_RESPONSE_TOPIC"
        if answerable and (request.wants_answer or named_reply):
            try:
                self._answer(errand.delivery, named_reply, content_type, payload, user)
                return
            except RejectedError:
                pass  # nobody can be answered there: the errors topic hears of it
        topic = self._topics.errors.replace("{function}", request.function)
        qos = 1 if message.link == "cloud" else message.qos
        out = Outbound(topic, payload, qos, properties=Properties(content_type=content_type, user=user))
        with contextlib.suppress(RejectedError):  # logged and counted by the outbox
            self._send(message.link, "result", out, errand.delivery)

    def _capture(self, request: Request, answer: Answer, errand: _Errand) -> None:
        traits, delivery = self._traits(request.function), errand.delivery
        if not traits.captured and not answer.kept:
            return
        settled = Settled(
            f"{delivery.key}-{request.function}",
            answer.origin,
            request.topic,
            (kind_of(request.content_type, traits.encoding), request.payload),
            answer.outputs[0][1:] if answer.outputs else answer.answer if answer.returned else None,
            answer.kept,
        )
        self._ports.capture(settled, lambda: self._hold(delivery))

    def _hold(self, delivery: Delivery) -> Callable[[], None]:
        """Keeps a delivery open until what is given is called."""
        delivery.open += 1
        return lambda: self._deliveries.release(delivery)

    def _send(self, link: str, kind: str, out: Outbound, delivery: Delivery) -> None:
        """Sends what a delivery is then open for.

        Raises:
            RejectedError: the link's broker can never take it; the delivery is as before.
        """
        delivery.open += 1
        try:
            link = "local" if self.one_link else link
            self._ports.send(link, kind, out, partial(self._deliveries.release, delivery))
            if delivery.sent is not None and link == delivery.message.link and kind == "result":
                delivery.sent.append((link, out))
        except RejectedError:
            delivery.open -= 1
            raise

    def hops_of(self, request: Request | None) -> int:
        """How many functions a call goes through that is made while `request` is served; None: from nowhere."""
        if request is None or not isinstance(request.context, _Errand):
            return 1
        errand: _Errand = request.context
        return errand.delivery.hops + errand.hops + 1

    def _traits(self, function: str) -> FunctionTraits:
        return self.traits.get(function, NO_TRAITS)
