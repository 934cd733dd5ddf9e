"""What an agent begins with: its group found whole, and its workers on their way.

A worker takes longer to start than all the rest of the agent: its interpreter, numpy, a runtime and a model. So it
comes first, and what is imported here is what it takes to start one; `agent.app` is imported, built and connected on
another core meanwhile. Until that has said `ready`, what workers ask of the agent waits.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from agent.activation import Activation
from agent.deployment.admission import Admit
from agent.deployment.deployer import Deployer
from agent.deployment.fresh_urls import Ask
from agent.deployment.ledger import Report
from agent.deployment.store import Group, Store
from agent.inference import launching
from agent.inference.dispatch import Dispatcher
from agent.inference.requests import FunctionCall
from agent.inference.spare import Spare
from agent.settings import Settings
from agent.values import dataclass
from functions.memory import share_one_arena


@dataclass(frozen=True, slots=True)
class Rest:
    """The rest of the agent, as these parts see it.

    Attributes:
        route: sets a group's subscriptions; returns when the brokers know.
        changed: the state of a function may have changed.
        take: takes what a function asks of the agent.
        report: takes a deployment's status.
        admit: refuses a deployment whose routes cannot be; on any thread.
        ask_anew: asks where a deployment came from for its document once more.
    """

    route: Callable[[Group], Awaitable[None]]
    changed: Callable[[], None]
    take: Callable[[FunctionCall], None]
    report: Report
    admit: Admit
    ask_anew: Ask


class Beginning:
    """The parts of one core's agent that its first workers need.

    Args:
        settings: of a core whose state directory is this agent's.
        spare: for the first worker.

    Attributes:
        group: what is to run, once `start` has returned.
        stopping: set by SIGTERM and SIGINT.
    """

    def __init__(self, settings: Settings, spare: Spare | None) -> None:
        share_one_arena()
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.group: Group | None = None
        self._rest: Rest | None = None
        self._waiting: list[FunctionCall] = []
        self._ready = False
        self._spare = spare
        self.store = Store(settings.state, settings.retention)
        self.dispatcher = Dispatcher()
        self.activation = Activation(
            settings,
            self.dispatcher,
            loop=self.loop,
            routed=lambda group: self.rest.route(group),
            changed=self._changed,
            called=self._called,
            launch=spare.launch if spare else launching.start,
        )
        self.deployer = Deployer(
            self.store,
            settings,
            self.activation,
            lambda status: self.rest.report(status),
            admit=lambda deployment: self.rest.admit(deployment),
            ask_anew=lambda deployment: self.rest.ask_anew(deployment),
        )

    async def start(self) -> None:
        """Finds the group that is to run and starts its workers; does not wait for them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not the loop's own way, which asks the module inspect about the handler: 1 MB with ast and dis.
            signal.signal(number, self._told_to_stop)
        self.group = await self.deployer.recover()
        if self.group is not None:
            await self.activation.begin(self.group)
            await asyncio.sleep(0)  # in this turn of the loop the workers are told what to load
        if self._spare is not None:
            self._spare.end()

    @property
    def rest(self) -> Rest:
        """The rest of the agent. Nothing asks for it before `join`: no group is promoted, no deployment begun."""
        assert self._rest is not None
        return self._rest

    def join(self, rest: Rest) -> None:
        """Makes the rest known. To be called once, when `start` has returned."""
        self._rest = rest

    def ready(self) -> None:
        """The rest can take what functions ask: it gets what has waited, in order."""
        self._ready = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self.rest.take(call)

    def _told_to_stop(self, *_: object) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.stopping.set)

    def _called(self, call: FunctionCall) -> None:
        if self._ready:
            self.rest.take(call)
        else:
            self._waiting.append(call)

    def _changed(self) -> None:
        if self._rest is not None:  # else there is nobody to be told yet
            self._rest.changed()
