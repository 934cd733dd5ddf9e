"""The way of a message through the agent: in from a link or a function, to its targets. Pure.

What comes of it goes out by `agent.routing.outcomes`. Links, spool and functions are ports; nothing here blocks, waits
or makes a task.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.errors import AgentError, FunctionError, RejectedError
from agent.inference.requests import Failure, Origin, Request
from agent.messages import Inbound, Outbound, Properties
from agent.routing.answers import answer_topic_problem, correlation_text
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.outcomes import NO_TRAITS, FunctionTraits, Outcomes, WaysOut
from agent.routing.repeats import Repeats
from agent.routing.subscriptions import FUNCTION, LINKS, SHADOWS, Subscriptions, Way, way_to
from agent.routing.topics import name_problem
from agent.settings import AnswerLimits, Topics

MAX_HOPS = 16  # from function to function; a round of them ends with an error instead of never


class Ports(WaysOut, Protocol):
    def submit(self, request: Request) -> None: ...
    def ready(self, function: str) -> bool: ...
    def has_room(self, function: str, size: int) -> bool: ...
    def now(self) -> float: ...


class Exchange:
    """Routes messages to functions and links.

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
        self._outcomes = Outcomes(topics, deliveries, ports, self._pass_on)
        self._settle = self._outcomes.settle
        self._subscriptions = self._outcomes.subscriptions
        self._deliveries = deliveries
        self._repeats = Repeats(answers, ports.now, self._for_endpoints)
        deliveries.on_over = self._repeats.over
        self._ports = ports
        self.expired = 0
        self._prefix = f"{core}-{boot}-"
        self._number = 0

    @property
    def subscriptions(self) -> Subscriptions:
        """The routing table in force."""
        return self._subscriptions

    @subscriptions.setter
    def subscriptions(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = self._outcomes.subscriptions = subscriptions

    @property
    def traits(self) -> Mapping[str, FunctionTraits]:
        """What is known of the functions, by Id."""
        return self._outcomes.traits

    @traits.setter
    def traits(self, traits: Mapping[str, FunctionTraits]) -> None:
        self._outcomes.traits = traits

    @property
    def one_link(self) -> bool:
        """Whether one connection is both links."""
        return self._outcomes.one_link

    @one_link.setter
    def one_link(self, one_link: bool) -> None:
        self._outcomes.one_link = one_link

    # -- in ---------------------------------------------------------------------------------------------------------

    def receive(self, message: Inbound) -> None:
        """Takes a message of a link and sees to its acknowledgement."""
        if self._deliveries.stale and self._deliveries.join(message):
            return
        way = self._subscriptions.ways[message.link, message.topic]
        self._number += 1
        delivery = Delivery(f"{self._prefix}{self._number}", message, way.targets)
        if way.functions:
            before = self._repeats.begin(delivery)
            if before is not None:
                self._answer_again(delivery, before)
                return
        function = way.only
        if function is None:
            self._open(delivery, way)
        else:  # nearly always
            self._deliveries.begin(delivery, ready=self._ports.ready(function))
            self._submit(function, delivery)

    def _key(self) -> str:
        self._number += 1
        return f"{self._prefix}{self._number}"

    def _for_endpoints(self, delivery: Delivery) -> bool:
        return all(self.traits.get(each, NO_TRAITS).endpoint for each in way_to(delivery.targets).functions)

    @property
    def answered_again(self) -> int:
        """Requests that came again and were not run again."""
        return self._repeats.answered

    def forget_answers(self) -> None:
        """Another group is in use: what is asked again from now on is run again."""
        self._repeats.forget()

    def _answer_again(self, delivery: Delivery, before: Delivery | list[tuple[str, Outbound]]) -> None:
        """Sees to a request that was run already, or is now."""
        self._repeats.answered += 1
        delivery.targets = ()  # nothing to run, after a restart either
        self._deliveries.begin(delivery, ready=True)
        if isinstance(before, Delivery):
            before.followers = [*(before.followers or ()), delivery]
            return
        for link, out in before:
            with contextlib.suppress(RejectedError):  # logged and counted by the outbox
                self._outcomes.send(link, "result", out, delivery)
        self._deliveries.release(delivery)

    def restore(self, key: str, message: Inbound, targets: tuple[str, ...]) -> None:
        """Runs again what the inbox kept over a restart."""
        delivery, way = Delivery(key, message, targets), way_to(targets)
        if way.functions:
            self._repeats.begin(delivery)
        self._deliveries.restore(delivery)
        self._run(delivery, way)

    def invoke(self, function: str, message: Inbound, respond: Callable[[str, bytes], None]) -> None:
        """Runs one function for a requester that is no link; `respond` gets (content type, payload) of its answer."""
        way = way_to((FUNCTION + function,))
        delivery = Delivery(self._key(), message, way.targets)
        delivery.respond = respond
        self._open(delivery, way)

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
        way = way_to((FUNCTION + function,))
        delivery = Delivery(self._key(), message, way.targets)
        delivery.respond, delivery.tell_failure = respond, failed
        delivery.hops, delivery.client_context = hops, client_context
        self._open(delivery, way)

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
        way = self._subscriptions.ways[source, message.topic]
        delivery = Delivery(self._key(), message, way.targets)
        delivery.hops = hops
        full = [f for f in way.functions if strict and not self._ports.has_room(f, len(message.payload))]
        if full:
            raise FunctionError("OVERLOADED", f"Function {full[0]} takes no more messages now.", "Publish it later.")
        self._deliveries.begin(delivery, ready=True)
        try:
            for link in (target for target in way.others if target in LINKS):
                self._forward(link, message, delivery, strict=strict)
            if SHADOWS in way.others:
                self._outcomes.to_shadows(message.topic, message.payload, delivery)
            for function in way.functions:
                self._pass_on(function, message.topic, message.properties.content_type, message.payload, delivery, 1)
        finally:
            self._deliveries.release(delivery)

    def _open(self, delivery: Delivery, way: Way) -> None:
        ready = True
        for function in way.functions:
            ready = ready and self._ports.ready(function)
        self._deliveries.begin(delivery, ready=ready)
        self._run(delivery, way)

    def _run(self, delivery: Delivery, way: Way) -> None:
        """Gives it to all its targets. It is open for each function; without one, until this is done."""
        message = delivery.message
        for target in way.others:
            if target == SHADOWS:
                self._outcomes.to_shadows(message.topic, message.payload, delivery)
            else:
                self._forward(target, message, delivery)
        if not way.functions:
            self._deliveries.release(delivery)
            return
        delivery.open += len(way.functions) - 1
        for function in way.functions:
            self._submit(function, delivery)

    def _submit(self, function: str, delivery: Delivery) -> None:
        """Has a function run on the message itself."""
        message = delivery.message
        content_type, wanted, correlation, expiry_s, _ = message.properties
        request = Request(
            function,
            message.topic,
            message.payload,
            content_type,
            correlation_text(correlation) if correlation else delivery.key,
            self._settle,
            wanted is not None or delivery.respond is not None,
            None if expiry_s is None else message.received_s + expiry_s,
            delivery,
        )
        if delivery.client_context is not None:
            request.client_context = delivery.client_context
        # By an earlier run, or by a broker that gave us more than we had asked for.
        request.admitted = delivery.inboxed if delivery.acked else delivery.surplus
        if wanted is not None and (problem := answer_topic_problem(wanted, self._outcomes.own)) is not None:
            self._settle(request, Failure(Origin(function, None, None, None), problem))
        else:
            self._ports.submit(request)

    def _pass_on(
        self, function: str, topic: str, content_type: str | None, payload: bytes, delivery: Delivery, hops: int
    ) -> None:
        """Has a function run on what another one made of the message."""
        delivery.open += 1
        expiry_s = delivery.message.properties.expiry_s
        request = Request(function, topic, payload, content_type, delivery.key, self._settle)
        request.context, request.hops = delivery, hops
        if expiry_s is not None:
            request.expires_s = delivery.message.received_s + expiry_s
        if delivery.hops + hops <= MAX_HOPS:
            self._ports.submit(request)
            return
        error = FunctionError(
            "TOO_MANY_HOPS", f"A message went through {MAX_HOPS} functions.", "Take the round out of the subscriptions."
        )
        self._settle(request, Failure(Origin(function, None, None, None), error))

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
            self._outcomes.send(
                link, "result", Outbound(message.topic, message.payload, qos, properties=properties), delivery
            )
        except RejectedError:
            if strict:
                raise  # else it is enough that the outbox has logged and counted it

    def hops_of(self, request: Request | None) -> int:
        """How many functions a call goes through that is made while `request` is served; None: from nowhere."""
        if request is None or not isinstance(request.context, Delivery):
            return 1
        return request.context.hops + request.hops + 1
