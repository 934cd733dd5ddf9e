"""The real deployer on a made-up clock, with made-up workers and installer, over thousands of random orders of events.

Everything that decides is real: documents, the machine, journal, store, recovery, quarantine. Time is the simulation's,
threads are calls, and the disk fails, or the power goes, at any fsync. A schedule follows from its seed alone: run
one again with ``simulate(SEED, DIRECTORY)``. There are 500 in a usual run, 20,000 with --soak.

What is asserted are the invariants of deployments: `current` leads to a whole group; success is durable before it is
said; what fails leaves what ran; recovery is idempotent and bounded; an id is deployed once; sequences rise; a rollback
needs no network; what failed its trial is not tried again by itself; a damaged journal stops nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import selectors
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.deployment import quarantine
from agent.deployment.definition import Probation
from agent.deployment.deployer import Deployer, Limits
from agent.deployment.installation import Installed, OnEvent
from agent.deployment.journal import JournalFile
from agent.deployment.machine import State
from agent.deployment.objects import Entry
from agent.deployment.store import Group, Known, Store
from agent.errors import AgentError, FunctionError, IntegrityError, RejectedError, TransientError
from agent.settings import Link, Policy, Settings, Topics

SCHEDULES, SOAK_SCHEDULES = 500, 20_000
IN_ONE_TEST = 100
STEPS = 12
LONG_S = 10_000.0  # beyond every deadline below
LIMITS = Limits(fetch_s=100, warm_s=50, step_s=20, check_s=20, probation=Probation(seconds=0))
ROLLBACK_CODES = ("NOTHING_TO_ROLL_BACK", "DEPLOYMENT_UNDER_WAY", "STATE_UNWRITABLE", "DISK_FULL", "DISK_FAILED")
KINDS = ("good", "good", "good", "unloadable", "sick", "crashing", "hanging", "gone")


class PowerCut(BaseException):
    """The power is gone; nothing that comes after this is on the disk."""


# -- a made-up machine ------------------------------------------------------------------------------------------------


class _NoSelector(selectors.SelectSelector):
    """Nothing is ever ready: time passes instead."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None and self._clock.stopped():
            raise PowerCut
        assert timeout is not None, "nothing is left that could ever happen"
        self._clock.now_s += timeout
        return []


@dataclass
class Clock:
    stopped: Callable[[], bool]
    now_s: float = 1000.0


class Loop(asyncio.SelectorEventLoop):
    """An event loop on a made-up clock, on which a thread's work is done at once."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_NoSelector(clock))
        self._made_up = clock

    def time(self) -> float:
        return self._made_up.now_s

    def run_in_executor(self, executor: Any, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(call(*args))
        except (Exception, PowerCut) as error:
            done.set_exception(error)
        return done


class Disk:
    """What fsync does: fails now and then, or takes the power with it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.syncs = 0
        self.cut_at: int | None = None
        self.error_rate = 0.0
        self.off = False

    def fsync(self, fd: int) -> None:
        self.syncs += 1
        if self.off or self.syncs == self.cut_at:
            self.off = True
            raise PowerCut
        if self._chance.random() < self.error_rate:
            raise OSError(self._chance.choice((5, 28)), "made up")


def version(n: int) -> str:
    return hashlib.sha256(b"%d" % n).hexdigest()


@dataclass
class World:
    """What outlives a power cut: the disk, what was said, and what the simulation knows about it."""

    chance: random.Random
    root: Path
    disk: Disk
    clock: Clock
    bodies: dict[str, bytes] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    code: int = 0
    online: bool = True
    said: list[dict[str, Any]] = field(default_factory=list)
    succeeded: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def must(self, holds: object, text: str) -> None:
        """Notes what does not hold: who calls may be somebody who catches everything."""
        if not holds:
            self.troubles.append(text)

    def settings(self) -> Settings:
        return Settings(
            file=self.root / "topics.yaml", core="press-7", state=self.root / "state",
            functions=(self.root / "functions",), local=Link("local", "mqtt://127.0.0.1:1"), cloud=None,
            topics=Topics("d", "s", "t", "c", "e"), subscriptions=(), policy=Policy(sources=("file://*",)),
        )  # fmt: skip


class Workers:
    """The activation's port: knows which group is routed to, and fails as the group's models are bad."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.routed = 0
        self.warmed: set[int] = set()

    def _kinds(self, group: Group) -> set[str]:
        kinds = {version(n): kind for n, kind in self.life.world.kinds.items()}
        return {kinds[ref.hex] for ref in group.objects.values()}

    async def _step(self, group: Group) -> None:
        await asyncio.sleep(self.life.world.chance.random() * 3)
        self.life.store.verify(group)

    async def warm(self, group: Group) -> None:
        self.life.may_be_tried(group)
        if group.number in self.warmed or group.number == self.routed:
            return
        await self._step(group)
        if "unloadable" in self._kinds(group):
            raise FunctionError("MODEL_LOAD_FAILED", "made up")
        if "hanging" in self._kinds(group):
            await asyncio.Event().wait()
        self.warmed.add(group.number)

    async def check(self, group: Group) -> None:
        self.life.world.must(group.number in self.warmed, "what is checked is not warm")
        await self._step(group)
        if "sick" in self._kinds(group):
            raise FunctionError("HEALTH_CHECK_FAILED", "made up")

    async def promote(self, group: Group) -> None:
        self.life.store.verify(group)
        self.warmed.discard(group.number)
        if self.routed != group.number:
            self.warmed.add(self.routed)
        self.routed = group.number
        await self._step(group)

    async def observe(self, group: Group, bounds: Probation) -> None:
        self.life.world.must(self.routed == group.number, "what is watched does not run")
        await asyncio.sleep(bounds.seconds * self.life.world.chance.random())
        if "crashing" in self._kinds(group):
            raise FunctionError("PROBATION_CRASH_LOOP", "made up")

    async def release(self, group: Group) -> None:
        self.life.world.must(self.routed == group.number, "what runs was released")
        self.life.world.must(self.life.store.current_number() == group.number, "released before it was current")
        self.warmed.clear()

    async def discard(self, group: Group) -> None:
        self.warmed.discard(group.number)  # never what is in use

    def in_use(self) -> set[int]:
        return {self.routed, *self.warmed}

    def remarks(self, group: Group) -> tuple[str, ...]:
        return ()


class Life:
    """An agent's deployer from a start to its end, by a stop or a power cut."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loop = Loop(world.clock)
        self.loop.set_exception_handler(lambda loop, context: None)  # tasks that a power cut ended
        asyncio.set_event_loop(self.loop)
        self.store = Store(world.root / "state")
        self.workers = Workers(self)
        self.deployer = Deployer(
            self.store, world.settings(), self.workers, self.hear, limits=LIMITS, install=self.install
        )  # fmt: skip
        self.cut = False

    def run(self, work: Any) -> Any:
        """Runs `work` to its end, unless the power goes."""
        task = self.loop.create_task(work)
        try:
            result = self.loop.run_until_complete(task)
        except PowerCut:
            self.cut = True
            return None
        if self.world.disk.off:
            self.cut = True
        return result

    async def start(self) -> None:
        group = await self.deployer.recover()
        if group is not None:
            self.store.verify(group)
            self.workers.routed = group.number
        assert (group.number if group else None) == self.store.current_number()
        self.deployer.start()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def end(self) -> None:
        """The process is gone: its tasks never go on. What they would do at their end, the disk does not take."""
        self.world.disk.off = True
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for _ in range(20):
            try:
                self.loop.run_until_complete(asyncio.sleep(0))
            except (PowerCut, asyncio.CancelledError):
                continue
        self.loop.close()
        self.world.disk.off = False
        self.world.disk.cut_at = None

    # -- the installer -------------------------------------------------------------------------------------------------

    async def install(self, state: Path, job: dict[str, Any], on_event: OnEvent) -> Installed:
        active = self.deployer._ledger.journal.active
        assert active is not None
        self.world.must(active.state is State.FETCHING, f"{active.state} needed the network")
        self.world.must(active.rollback is None, "a rollback needed the network")
        objects: dict[str, str] = {}
        known: dict[str, Known] = {}
        for archive in job["archives"]:
            on_event({"event": "phase", "phase": "fetching", "id": archive["id"]})
            await asyncio.sleep(self.world.chance.random() * 5)
            number = int(archive["source"].rpartition("/")[2])
            if self.world.chance.random() < 0.05:
                raise TransientError("INSTALLER_LOST", "made up")
            if not self.world.online or self.world.kinds[number] == "gone":
                raise AgentError("SOURCE_UNREACHABLE", "made up")
            self._add(version(number), b"%d" % number)
            objects[archive["id"]] = version(number)
            known[archive["source"]] = Known("etag", version(number))
        code = hashlib.sha256(b"code %d" % self.world.code).hexdigest()
        for _ in job["folders"]:
            self._add(code, b"code")
        return Installed(objects, {folder["id"]: code for folder in job["folders"]}, known)

    def _add(self, hex: str, data: bytes) -> None:
        staged = self.store.objects.stage(hex[:8])
        (staged / "tree" / "file").write_bytes(data)
        entry = Entry("file", len(data), hashlib.sha256(data).hexdigest(), 0o444)
        self.store.objects.add(staged, hex, [entry], kind="archive", source="", etag=None)

    # -- what must hold ------------------------------------------------------------------------------------------------

    def hear(self, status: dict[str, Any]) -> None:
        """Each status: a final one is on the disk already, and what runs is what it says."""
        id, word = status["deploymentId"], status["status"]
        again = status in self.world.said
        self.world.said.append(status)
        if word == "IN_PROGRESS":
            return
        code = (status["reason"] or {}).get("code")
        self.world.must(code != "DEPLOYMENT_BROKEN", str(status["reason"]))
        self.is_whole()
        if word == "SUCCEEDED":
            self.world.must(self.journalled(id), f"the success of {id} was said before it was durable")
            first = self.world.succeeded.setdefault(id, status["timestamp"])
            self.world.must(first == status["timestamp"], f"{id} was deployed twice")
        self.world.must(word == "SUCCEEDED" or id not in self.world.succeeded or code == "ID_REUSED", f"{id}: {status}")
        if not again and word in ("SUCCEEDED", "FAILED") and code != "ROLLBACK_FAILED":
            routed, current = self.workers.routed, self.store.current_number()
            self.world.must(routed == (current or 0), f"{id} {word} {code}: {routed} runs, current is {current}")

    def is_whole(self) -> None:
        """`current` leads to a group whose every file is what it was."""
        try:
            group = self.store.current()
            if group is not None:
                self.store.verify(group)
        except IntegrityError as error:
            self.world.must(False, str(error))

    def journalled(self, id: str) -> bool:
        """Whether the journal on the disk has the id's success."""
        journal = JournalFile(self.world.root / "state" / "deployments").load()
        if id in journal.statuses:
            return bool(journal.statuses[id][1]["status"] == "SUCCEEDED")
        return False

    def may_be_tried(self, group: Group) -> None:
        """What failed its trial is only tried again when that is asked for."""
        active = self.deployer._ledger.journal.active
        assert active is not None
        if active.rollback is not None or active.state is not State.WARMING or active.group != group.number:
            return
        asked = json.loads(self.store.journal.body(active.body_digest)).get("Marram", {}).get("RetryQuarantined", False)
        if not asked:
            digests = (ref.version for ref in (*group.objects.values(), *group.code.values()))
            try:
                quarantine.refuse(self.deployer._ledger.journal.quarantine, digests)
            except RejectedError as error:
                self.world.must(False, f"{active.id}: {error}")


# -- what may happen --------------------------------------------------------------------------------------------------


class Schedule:
    """One random order of events, from one seed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.life = self._live()

    def _live(self) -> Life:
        """Starts until a start is not cut itself."""
        while True:
            life = Life(self.world)
            try:
                life.run(life.start())
            except OSError:
                life.cut = True  # a start that fails is tried again by whoever starts agents
            if not life.cut:
                return life
            life.end()

    def run(self) -> None:
        for _ in range(STEPS):
            step = self.chance.choices(STEPS_AND_WEIGHTS[0], STEPS_AND_WEIGHTS[1])[0]
            getattr(self, step)()
            if self.life.cut:
                self.life.end()
                self.life = self._live()
            assert not self.world.troubles, (step, self.world.troubles)
        self.settle()
        assert not self.world.troubles, self.world.troubles

    def settle(self) -> None:
        """With no more faults all comes to an end; and a start more changes nothing."""
        self.world.disk.error_rate, self.world.disk.cut_at, self.world.online = 0.0, None, True
        self.life.run(self.life.pass_time(LONG_S))
        deployer = self.life.deployer
        assert deployer._ledger.journal.active is None, "a deployment goes on for ever"
        assert deployer._ledger.journal.waiting is None
        running = self.life.store.current_number()
        self.life.run(deployer.close())
        self.life.end()
        for _ in range(2):
            life = Life(self.world)
            life.run(life.start())
            assert life.store.current_number() == running, "recovery is not idempotent"
            assert life.deployer._ledger.journal.active is None
            life.run(life.deployer.close())
            life.end()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _send(self, body: bytes) -> None:
        async def send() -> None:
            self.life.deployer.receive(body, retained=False, accepted=lambda: None)

        self.life.run(send())

    def deploy(self) -> None:
        number = self.chance.randrange(8)
        self.world.kinds.setdefault(number, self.chance.choice(KINDS))
        id = f"d{len(self.world.bodies)}"
        marram: dict[str, Any] = {}
        if self.chance.random() < 0.3:
            marram["Sequence"] = self.chance.randrange(20)
        if self.chance.random() < 0.6:
            marram["Probation"] = {"Seconds": self.chance.choice((0, 5, 30))}
        if self.chance.random() < 0.15:
            marram["RetryQuarantined"] = True
        data = {"FileMachineLearningModelResourceData": {"Path": f"/models/{number}"}}
        resource: dict[str, Any] = {"Id": "m", "Name": "m", "ResourceDataContainer": data}
        if self.chance.random() < 0.3:
            resource["Marram"] = {"Digest": f"sha256:{version(number)}"}
        function = {"Id": "f", "FunctionArn": "function:f"}
        body = {"DeploymentId": id, "Resources": [resource], "Functions": [function], "Marram": marram}
        self.world.bodies[id] = json.dumps(body).encode()
        self._send(self.world.bodies[id])
        self.wait()

    def again(self) -> None:
        if self.world.bodies:
            self._send(self.chance.choice(list(self.world.bodies.values())))
            self.wait()

    def reuse_an_id(self) -> None:
        if self.world.bodies:
            body = json.loads(self.chance.choice(list(self.world.bodies.values())))
            self._send(json.dumps({**body, "Subscriptions": []}).encode())
            self.wait()

    def other_type(self) -> None:
        id = f"d{len(self.world.bodies)}"
        kind = self.chance.choice(("Redeployment", "ResetDeployment", "ForceResetDeployment"))
        self.world.bodies[id] = json.dumps({"DeploymentId": id, "DeploymentType": kind}).encode()
        self._send(self.world.bodies[id])
        self.wait()

    def garbage(self) -> None:
        self._send(self.chance.randbytes(self.chance.randrange(40)))

    def wait(self) -> None:
        self.life.run(self.life.pass_time(self.chance.choice((0.0, 0.1, 2.0, 10.0, 40.0))))

    def roll_back(self) -> None:
        async def turn() -> None:
            try:
                await self.life.deployer.roll_back()
            except AgentError as error:
                self.world.must(error.code in ROLLBACK_CODES, str(error))

        self.life.run(turn())

    def cancel(self) -> None:
        async def cancel() -> None:
            try:
                self.life.deployer.cancel_by_hand()
            except RejectedError as error:
                self.world.must(error.code in ("NOTHING_TO_CANCEL", "TOO_LATE_TO_CANCEL"), str(error))

        self.life.run(cancel())

    def heard(self) -> None:
        async def hear() -> None:
            for status in self.world.said[-3:]:
                self.life.deployer.reported(status["deploymentId"])
            await asyncio.sleep(0)

        self.life.run(hear())

    def change_code(self) -> None:
        self.world.code += 1

    def change_network(self) -> None:
        self.world.online = not self.world.online

    def change_disk(self) -> None:
        self.world.disk.error_rate = self.chance.choice((0.0, 0.0, 0.0, 0.1))

    def power_cut_soon(self) -> None:
        self.world.disk.cut_at = self.world.disk.syncs + self.chance.randint(1, 40)

    def kill(self) -> None:
        self.life.end()
        self.life = self._live()

    def restart(self) -> None:
        self.life.run(self.life.deployer.close())
        self.kill()

    def damage_the_journal(self) -> None:
        self.life.end()
        file = self.world.root / "state" / "deployments" / "journal.json"
        if file.exists():
            data = file.read_bytes()
            file.write_bytes(data[: self.chance.randrange(len(data))])
        # What was known of ids is gone with it.
        self.world.bodies.clear()
        self.world.succeeded.clear()
        self.world.said.clear()
        self.life = self._live()


STEPS_AND_WEIGHTS = (
    ["deploy", "again", "reuse_an_id", "other_type", "garbage", "wait", "roll_back", "cancel", "heard", "change_code",
     "change_network", "change_disk", "power_cut_soon", "kill", "restart", "damage_the_journal"],
    [30, 5, 2, 5, 1, 15, 8, 5, 4, 3, 2, 3, 8, 5, 3, 1],
)  # fmt: skip


def simulate(seed: int, root: Path) -> Schedule:
    """Runs one schedule in an empty directory."""
    (root / "functions" / "f").mkdir(parents=True)
    (root / "functions" / "f" / "__init__.py").write_text("")
    chance = random.Random(seed)
    disk = Disk(chance)
    world = World(chance, root, disk, Clock(stopped=lambda: disk.off))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", world.disk.fsync)
        schedule = Schedule(world)
        schedule.run()
    return schedule


@pytest.mark.timeout(3600)  # with --soak
@pytest.mark.parametrize("first", range(0, SCHEDULES, IN_ONE_TEST))
def test_any_order_of_events_leaves_the_invariants_standing(first: int, tmp_path: Path, soak: bool) -> None:
    logging.disable(logging.CRITICAL)
    times = SOAK_SCHEDULES // SCHEDULES if soak else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tasks that a power cut left where they were
            for seed in range(first * times, (first + IN_ONE_TEST) * times):
                root = tmp_path / str(seed)
                try:
                    simulate(seed, root)
                except (Exception, PowerCut) as error:
                    raise AssertionError(f"seed {seed}: {error!r}") from error
                shutil.rmtree(root)
    finally:
        logging.disable(logging.NOTSET)
