"""Deployments from the document to the committed group: a real installer, a real S3 server, a real state directory.

The workers are not this area's: `Workers` stands where they are, as the port that the deployer asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.definition import Probation
from agent.deployment.deployer import Deployer, Limits
from agent.deployment.download import FetchLimits
from agent.deployment.journal import Journal, Record
from agent.deployment.machine import State
from agent.deployment.store import Group, Store
from agent.errors import AgentError, FunctionError, RejectedError
from agent.settings import Link, Policy, Settings, Topics
from tests.s3_kit import S3Server, s3_server  # noqa: F401 - a fixture

DEADLINE_S = 30.0
LIMITS = Limits(fetch=FetchLimits(attempts=1, backoff_s=0.05), probation=Probation(seconds=0))


@functools.cache  # gzip notes the time
def archive(seed: int, size: int = 1000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in (
            ("model.json", b"%d" % seed),
            ("w.bin", hashlib.sha512(b"%d" % seed).digest() * (size // 64)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document(id: str, uri: str | None = None, *, folder: str = "activity", **more: Any) -> bytes:
    resources = []
    if uri is not None:
        kind, key = ("S3", "S3Uri") if uri.startswith("s3:") else ("File", "Path")
        source = {f"{kind}MachineLearningModelResourceData": {key: uri, "DestinationPath": "/ml/m"}}
        resources.append({"Id": "m", "Name": "M", "ResourceDataContainer": source, "Marram": more.pop("resource", {})})
    policies = [{"ResourceId": "m", "Permission": "ro"}] if resources else []
    environment = {"Execution": {}, "ResourceAccessPolicies": policies}
    function = {
        "Id": "activity", "FunctionArn": f"function:{folder}", "FunctionConfiguration": {"Environment": environment},
        "Marram": more.pop("function", {}),
    }  # fmt: skip
    return json.dumps({"DeploymentId": id, "Resources": resources, "Functions": [function], **more}).encode()


class Stick:
    """Puts archives where a File source finds them; as S3Server, without the half second that boto3 takes to load."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, bucket: str, key: str, data: bytes) -> str:
        path = self._directory / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def stick(tmp_path: Path) -> Stick:
    return Stick(tmp_path / "stick")


class Workers:
    """Stands where the workers are: remembers what it was told; `fail` and `hold` make a step fail or wait."""

    def __init__(self, news: asyncio.Event) -> None:
        self.news = news
        self.told: list[tuple[str, int]] = []
        self.running: int | None = None
        self.fail: dict[str, Exception] = {}
        self.hold: set[str] = set()

    async def _do(self, step: str, group: Group) -> None:
        self.told.append((step, group.number))
        self.news.set()
        for ref in (*group.objects.values(), *group.code.values()):
            assert ref.tree.is_dir()
        if (step in self.fail) and group.number:
            raise self.fail[step]
        if step in self.hold:
            await asyncio.Event().wait()

    async def warm(self, group: Group) -> None:
        await self._do("warm", group)

    async def check(self, group: Group) -> None:
        if "check" in self.fail | dict.fromkeys(self.hold):
            await self._do("check", group)

    async def promote(self, group: Group) -> None:
        await self._do("promote", group)
        self.running = group.number

    async def observe(self, group: Group, bounds: Probation) -> None:
        await self._do("observe", group)

    async def release(self, group: Group) -> None:
        assert self.running == group.number

    def in_use(self) -> set[int]:
        return set() if self.running is None else {self.running}

    def remarks(self, group: Group) -> tuple[str, ...]:
        return ()

    async def discard(self, group: Group) -> None:
        await self._do("discard", group)


class Site:
    """One core's state directory, with whatever deployer is alive on it."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.functions = directory / "functions"
        self.write_function("activity", "x = 1")
        nowhere = Link("local", "mqtt://127.0.0.1:1")
        self.settings = Settings(
            file=directory / "topics.yaml", core="press-7", state=self.state, functions=(self.functions,),
            local=nowhere, cloud=None, topics=Topics("d", "s", "t", "c", "e"), subscriptions=(),
            policy=Policy(sources=("s3://deploy-*", "file://*"), destinations=(str(directory / "host"),)),
        )  # fmt: skip
        self.statuses: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.hooks: list[Callable[[dict[str, Any]], None]] = []

    def write_function(self, name: str, code: str) -> None:
        (self.functions / name).mkdir(parents=True, exist_ok=True)
        (self.functions / name / "__init__.py").write_text(code)

    def report(self, status: dict[str, Any]) -> None:
        assert json.loads(json.dumps(status)) == status
        self.statuses.append(status)
        self.news.set()
        for hook in self.hooks:
            hook(status)

    @contextlib.asynccontextmanager
    async def agent(self, *, kill: bool = False, limits: Limits = LIMITS, admit: Any = None) -> AsyncIterator[Running]:
        """An agent's deployer from its start to its end; `kill` ends it without `close`."""
        store = Store(self.state)
        workers = Workers(self.news)
        deployer = Deployer(store, self.settings, workers, self.report, limits=limits, admit=admit)
        group = await deployer.recover()
        if group is not None:
            await workers.promote(group)
            workers.told.clear()
        deployer.start()
        running = Running(self, deployer, workers, store, group)
        try:
            yield running
        finally:
            if kill:
                assert deployer._driver is not None
                deployer._driver.cancel()
                await asyncio.wait({deployer._driver})
            else:
                await deployer.close()


class Running:
    def __init__(self, site: Site, deployer: Deployer, workers: Workers, store: Store, group: Group | None) -> None:
        self.site, self.deployer, self.workers, self.store, self.recovered = site, deployer, workers, store, group

    async def until(self, condition: Callable[[], Any]) -> Any:
        async def wait() -> Any:
            while not (found := condition()):
                self.site.news.clear()
                await self.site.news.wait()
            return found

        return await asyncio.wait_for(wait(), DEADLINE_S)

    async def send(self, body: bytes, *, retained: bool = False) -> None:
        """Returns when the message may be acknowledged."""
        accepted = asyncio.Event()
        self.deployer.receive(body, retained=retained, accepted=accepted.set)
        await asyncio.wait_for(accepted.wait(), DEADLINE_S)

    def last(self, id: str) -> dict[str, Any]:
        return next(s for s in reversed(self.site.statuses) if s["deploymentId"] == id)

    async def deploy(self, body: bytes, *, retained: bool = False) -> dict[str, Any]:
        """The deployment's final status."""
        known = len(self.site.statuses)
        id = json.loads(body)["DeploymentId"]

        def ended() -> dict[str, Any] | None:
            ends = [s for s in self.site.statuses[known:] if s["deploymentId"] == id and s["status"] != "IN_PROGRESS"]
            return ends[-1] if ends else None

        await self.send(body, retained=retained)
        status: dict[str, Any] = await self.until(ended)
        self.deployer.reported(id)
        if not self.workers.hold:
            await asyncio.wait_for(self.deployer.idle(), DEADLINE_S)
        return status

    def current(self) -> str | None:
        group = self.store.current()
        if group is not None:
            self.store.verify(group)
        return group.deployment.id if group else None


@pytest.fixture
def store_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:  # noqa: F811
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


s3 = store_environment


def run(tmp_path: Path, body: Callable[[Site], Any]) -> None:
    async def main() -> None:
        await body(Site(tmp_path))

    asyncio.run(main())


def code(status: dict[str, Any]) -> tuple[str, str]:
    return status["status"], status["reason"]["code"]


def test_a_deployment_succeeds_and_says_each_step(tmp_path: Path, s3: S3Server) -> None:
    data = archive(1)
    uri = s3.put("deploy-a", "one.tar.gz", data)

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            assert agent.recovered is None
            assert agent.deployer.latest is None
            last = await agent.deploy(document("d1", uri))
            assert last == agent.deployer.latest == agent.last("d1")
            assert last["resources"] == [{"id": "m", "version": digest(data), "previous": None}]
            assert (last["core"], last["status"], last["reason"]) == ("press-7", "SUCCEEDED", None)
            phases = list(dict.fromkeys(s["phase"] for s in site.statuses))
            assert phases == [
                "received", "fetching", "verifying", "unpacking", "staged", "warming", "checking", "swapping",
                "committed",
            ]  # fmt: skip
            assert agent.workers.told == [("warm", 1), ("promote", 1)]
            assert agent.current() == "d1"
            group = agent.store.current()
            assert group is not None
            assert (group.objects["m"].tree / "model.json").read_bytes() == b"1"
            assert (group.code["activity"].tree / "__init__.py").read_text() == "x = 1"
            assert os.listdir(site.state / "staging") == []
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == "d1"
            assert agent.workers.told == []

    run(tmp_path, body)


def test_models_and_code_change_together_and_the_unchanged_is_not_fetched(tmp_path: Path, s3: S3Server) -> None:
    one, two = s3.put("deploy-b", "one.tar.gz", archive(1)), s3.put("deploy-b", "two.tar.gz", archive(2))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1", one))
            site.write_function("activity", "x = 2")
            last = await agent.deploy(document("d2", two))
            assert last["resources"][0]["previous"] == digest(archive(1))
            group, before = agent.store.group(2), agent.store.group(1)
            assert (group.code["activity"].tree / "__init__.py").read_text() == "x = 2"
            assert (before.code["activity"].tree / "__init__.py").read_text() == "x = 1"
            fetched = len(s3.requests("one.tar.gz"))
            assert (await agent.deploy(document("d3", one)))["status"] == "SUCCEEDED"
            assert [status for _, _, status in s3.requests("one.tar.gz")[fetched:]] == [304]
            fetched = len(s3.requests("two.tar.gz"))
            with_digest = document("d4", two, resource={"Digest": digest(archive(2))})
            assert (await agent.deploy(with_digest))["status"] == "SUCCEEDED"
            assert s3.requests("two.tar.gz")[fetched:] == []
            assert agent.store.numbers() == [2, 3, 4]

    run(tmp_path, body)


def test_redeployment_checks_the_source_again(tmp_path: Path, s3: S3Server) -> None:
    uri = s3.put("deploy-c", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            again = json.dumps({"DeploymentId": "r0", "DeploymentType": "Redeployment"}).encode()
            assert code(await agent.deploy(again)) == ("REJECTED", "NOTHING_DEPLOYED")
            await agent.deploy(document("d1", uri))
            s3.put("deploy-c", "m.tar.gz", archive(2))
            last = await agent.deploy(again.replace(b"r0", b"r1"))
            assert last["status"] == "SUCCEEDED"
            assert last["resources"] == [{"id": "m", "version": digest(archive(2)), "previous": digest(archive(1))}]
            assert agent.current() == "r1"
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert (agent.recovered.deployment.id, agent.recovered.deployment.type) == ("r1", "Redeployment")
            assert [f.id for f in agent.recovered.deployment.functions] == ["activity"]

    run(tmp_path, body)


def test_a_reset_leaves_an_empty_group_and_keeps_the_floor(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-d", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1", uri, Marram={"Sequence": 5}))
            reset = json.dumps({"DeploymentId": "r1", "DeploymentType": "ResetDeployment"}).encode()
            last = await agent.deploy(reset)
            assert (last["status"], last["resources"]) == ("SUCCEEDED", [])
            group = agent.store.current()
            assert group is not None
            assert (group.deployment.functions, dict(group.objects)) == ((), {})
            for sequence, id in ((5, "low-5"), (4, "low-4")):
                low = await agent.deploy(document(id, uri, Marram={"Sequence": sequence}))
                assert code(low) == ("REJECTED", "SEQUENCE_TOO_LOW")
            assert (await agent.deploy(document("d6", uri, Marram={"Sequence": 6}), retained=True))[
                "status"
            ] == "SUCCEEDED"

    run(tmp_path, body)


def test_the_same_id_is_answered_again_and_another_body_is_refused(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-e", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            first = await agent.deploy(document("d1", uri))
            told = len(agent.workers.told)
            assert await agent.deploy(document("d1", uri)) == first
            assert len(agent.workers.told) == told
            assert code(await agent.deploy(document("d1", uri, Subscriptions=[]))) == ("REJECTED", "ID_REUSED")
            assert agent.deployer.latest == first
            refused = await agent.deploy(document("bad", "s3://elsewhere/m.tar.gz"))
            assert code(refused) == ("REJECTED", "NOT_ALLOWED")
            assert "s3://elsewhere/*" in refused["reason"]["message"]
        async with site.agent() as agent:
            assert await agent.deploy(document("d1", uri)) == first
            assert await agent.deploy(document("bad", "s3://elsewhere/m.tar.gz")) == refused

    run(tmp_path, body)


def test_what_is_refused_touches_no_source(tmp_path: Path, s3: S3Server) -> None:
    uri = s3.put("deploy-f", "m.tar.gz", archive(1))

    def cycle(deployment: Any) -> None:
        if deployment.id == "cycle":
            raise RejectedError("CYCLE", "round and round")

    async def body(site: Site) -> None:
        async with site.agent(admit=cycle) as agent:
            known = len(s3.requests())
            bodies = {
                "nowhere": document("nowhere", uri, folder="activty"),
                "python": document("python", uri, function={"Interpreter": "mxnet"}),
                "cycle": document("cycle", uri),
                "core": document("core", uri, Marram={"Core": "other"}),
                "kept": document("kept", uri),
            }
            codes = {id: code(await agent.deploy(b, retained=id == "kept"))[1] for id, b in bodies.items()}
            assert codes == {
                "nowhere": "FUNCTION_NOT_FOUND", "python": "NOT_ALLOWED", "cycle": "CYCLE", "core": "WRONG_CORE",
                "kept": "BAD_DOCUMENT",
            }  # fmt: skip
            assert 'did you mean "activity"' in agent.last("nowhere")["reason"]["message"]
            assert s3.requests()[known:] == []
            await agent.send(b"\x00\xffgarbage")
            assert code(agent.last("-")) == ("REJECTED", "BAD_DOCUMENT")
            assert agent.current() is None
            assert agent.workers.told == []

    run(tmp_path, body)


def test_what_fails_leaves_what_runs(tmp_path: Path, s3: S3Server) -> None:
    good = s3.put("deploy-g", "m.tar.gz", archive(1))
    flipped = bytearray(archive(2))
    flipped[len(flipped) // 2] ^= 1
    sources = {
        "flipped": (s3.put("deploy-g", "flip.tar.gz", bytes(flipped)), digest(archive(2)), "MODEL_DIGEST_MISMATCH"),
        "cut": (s3.put("deploy-g", "cut.tar.gz", archive(3)[:-20]), None, "ARCHIVE_BROKEN"),
        "text": (s3.put("deploy-g", "text.tar.gz", b"hello"), None, "NOT_AN_ARCHIVE"),
        "key": ("s3://deploy-g/none.tar.gz", None, "SOURCE_NOT_FOUND"),
        "bucket": ("s3://deploy-none/none.tar.gz", None, "SOURCE_NOT_FOUND"),
    }

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("good", good))
            for id, (uri, promised, expected) in sources.items():
                more = {"Digest": promised} if promised else {}
                assert code(await agent.deploy(document(id, uri, resource=more))) == ("FAILED", expected)
                assert agent.current() == "good"
                assert len(agent.store.objects.names()) == 2
            agent.workers.fail["warm"] = FunctionError("MODEL_LOAD_FAILED", "no such layer")
            other = s3.put("deploy-g", "other.tar.gz", archive(4))
            last = await agent.deploy(document("warm", other))
            assert (code(last), last["phase"]) == (("FAILED", "MODEL_LOAD_FAILED"), "warming")
            assert agent.workers.told[-1] == ("discard", 2)
            assert (agent.workers.running, agent.current(), agent.store.numbers()) == (1, "good", [1])
            agent.workers.fail = {"warm": RuntimeError("a mistake")}
            assert code(await agent.deploy(document("mistake", other))) == ("FAILED", "DEPLOYMENT_BROKEN")
            agent.workers.fail = {}
            assert (await agent.deploy(document("better", other)))["status"] == "SUCCEEDED"
            assert agent.store.numbers() == [1, 4]  # a number is never used again

    run(tmp_path, body)


def test_a_failed_promotion_turns_back(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-h", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            agent.workers.fail["promote"] = AgentError("FILTERS_REFUSED", "no")
            assert code(await agent.deploy(document("first", uri))) == ("FAILED", "FILTERS_REFUSED")
            assert agent.current() is None
            assert agent.workers.told == [("warm", 1), ("promote", 1), ("warm", 0), ("promote", 0), ("discard", 1)]
            agent.workers.fail = {}
            await agent.deploy(document("good", uri))
            agent.workers.fail["promote"] = AgentError("FILTERS_REFUSED", "no")
            last = await agent.deploy(document("second", uri))
            assert code(last) == ("FAILED", "ROLLBACK_FAILED")  # as promote fails for the old group too
            assert "FILTERS_REFUSED" in last["reason"]["message"]
            assert agent.current() == "good"

    run(tmp_path, body)


def test_deadlines_end_what_hangs(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-i", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent(limits=replace(LIMITS, warm_s=0.2)) as agent:
            agent.workers.hold.add("warm")
            last = await agent.deploy(document("d1", uri))
            assert (code(last), last["phase"]) == (("FAILED", "DEADLINE_EXCEEDED"), "warming")
        async with site.agent(limits=replace(LIMITS, fetch_s=0.01)) as agent:
            assert code(await agent.deploy(document("d2", uri))) == ("FAILED", "DEADLINE_EXCEEDED")
            assert agent.current() is None

    run(tmp_path, body)


def test_a_newer_deployment_takes_the_place_of_one_that_waits(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-j", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            agent.workers.hold.add("warm")
            await agent.send(document("d1", uri))
            await agent.until(lambda: agent.workers.told)
            await agent.send(document("d2", uri))
            await agent.send(document("d3", uri))
            assert code(agent.last("d2")) == ("REJECTED", "SUPERSEDED")
            agent.workers.hold.clear()
            reset = json.dumps({"DeploymentId": "stop", "DeploymentType": "ForceResetDeployment"}).encode()
            assert (await agent.deploy(reset))["status"] == "SUCCEEDED"
            assert code(agent.last("d1")) == ("FAILED", "CANCELLED")
            assert code(agent.last("d3")) == ("REJECTED", "SUPERSEDED")
            assert agent.current() == "stop"

    run(tmp_path, body)


def installers() -> list[int]:
    """The process ids of our installers."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"agent.deployment.installer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("phase", ["fetching", "verifying", "unpacking", "staged"])
def test_a_killed_installer_is_started_again_a_few_times(tmp_path: Path, stick: Stick, phase: str) -> None:
    uri = stick.put("deploy-k", "m.tar.gz", archive(1, 3_000_000))

    async def body(site: Site) -> None:
        left = [1]

        def kill(status: dict[str, Any]) -> None:
            if status["phase"] == phase and left and left.pop():
                for pid in installers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        async with site.agent() as agent:
            site.hooks.append(kill)
            assert (await agent.deploy(document("d1", uri)))["status"] == "SUCCEEDED"
            assert agent.current() == "d1"
            assert left == []

    run(tmp_path, body)


def test_an_installer_that_always_dies_fails_the_deployment(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-l", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        killed: set[int] = set()

        def kill(status: dict[str, Any]) -> None:
            for pid in installers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

        async with site.agent() as agent:
            # At the first event an installer is surely there: 'fetching' comes from the installer itself.
            site.hooks.append(kill)
            assert code(await agent.deploy(document("d1", uri))) == ("FAILED", "INSTALLER_LOST")
            assert len(killed) == LIMITS.attempts
            assert agent.current() is None

    run(tmp_path, body)


@pytest.mark.parametrize("phase", ["received", "fetching", "unpacking", "warming", "swapping", "committed"])
def test_an_agent_that_dies_in_any_phase_goes_on(tmp_path: Path, stick: Stick, phase: str) -> None:
    one, two = stick.put("deploy-m", "1.tar.gz", archive(1)), stick.put("deploy-m", "2.tar.gz", archive(2))

    async def body(site: Site) -> None:
        async with site.agent(kill=True) as agent:
            await agent.deploy(document("d1", one))
            reached = asyncio.Event()
            site.hooks.append(lambda s: reached.set() if s["phase"] == phase and s["deploymentId"] == "d2" else None)
            agent.deployer.receive(document("d2", two), retained=False, accepted=lambda: None)
            await asyncio.wait_for(reached.wait(), DEADLINE_S)
        site.hooks.clear()
        known = len(site.statuses)
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == ("d2" if phase == "committed" else "d1")
            await agent.until(lambda: any(s["status"] == "SUCCEEDED" for s in site.statuses[known:]))
            assert agent.last("d2")["status"] == "SUCCEEDED"
            assert agent.current() == "d2"

    run(tmp_path, body)


def journalled(site: Site, state: State, *, turned: bool, attempt: int = 1) -> None:
    """Makes the journal say that d2 was interrupted in `state`, with its group written and the link turned or not."""
    store = Store(site.state)
    first = store.group(1)
    body = document("d2", None)
    sha = hashlib.sha256(body).hexdigest()
    journal = store.journal.load()
    store.journal.add_body(sha, body)
    journal.active = Record(
        "d2", sha, state, attempt=attempt, group=2, previous=1, reason={"code": "WHY", "message": "so"}
    )
    journal.last_group = 2
    store.journal.save(journal.encode())
    deployment = replace(first.deployment, id="d2", body_digest=sha, resources=())
    store.write_group(2, deployment, body, {}, {"activity": first.code["activity"].hex})
    if turned:
        store.swap(2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("state", [State.WARMING, State.SWAPPING, State.PROMOTING, State.TURNING_BACK])
def test_each_journalled_state_ends_after_a_restart(tmp_path: Path, stick: Stick, state: State, turned: bool) -> None:
    uri = stick.put("deploy-n", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1", uri))
        journalled(site, state, turned=turned)
        known = len(site.statuses)
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == "d1"
            final = await agent.until(lambda: [s for s in site.statuses[known:] if s["status"] != "IN_PROGRESS"])
            if state is State.TURNING_BACK:
                assert code(final[0]) == ("FAILED", "WHY")
                assert (agent.current(), agent.workers.told) == ("d1", [("discard", 2)])
            else:
                assert final[0]["status"] == "SUCCEEDED"
                assert (agent.current(), agent.workers.told) == ("d2", [("warm", 2), ("promote", 2)])

    run(tmp_path, body)


def test_attempts_are_counted_over_restarts(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-o", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1", uri))
        journalled(site, State.SWAPPING, turned=True, attempt=3)
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == "d1"
            await agent.until(lambda: any(s["deploymentId"] == "d2" for s in site.statuses))
            assert code(agent.last("d2")) == ("FAILED", "TOO_MANY_ATTEMPTS")
            assert agent.current() == "d1"

    run(tmp_path, body)


def test_a_clean_stop_is_no_attempt(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-p", "m.tar.gz", archive(1))

    async def body(site: Site) -> None:
        for i in range(5):
            async with site.agent() as agent:
                agent.workers.hold.add("warm")
                if i == 0:
                    await agent.send(document("d1", uri))
                await agent.until(lambda: agent.workers.told)
        async with site.agent() as agent:
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")

    run(tmp_path, body)


def test_a_damaged_current_group_gives_way_to_the_one_before(tmp_path: Path, stick: Stick) -> None:
    one, two = stick.put("deploy-q", "1.tar.gz", archive(1)), stick.put("deploy-q", "2.tar.gz", archive(2))

    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1", one))
            await agent.deploy(document("d2", two))
            model = agent.store.group(2).objects["m"].tree / "w.bin"
        model.chmod(0o644)
        model.write_bytes(b"rot")
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == "d1"
            assert agent.current() == "d1"
            assert (await agent.deploy(document("d3", two)))["status"] == "SUCCEEDED"
            assert agent.current() == "d3"

    run(tmp_path, body)


def test_final_reports_are_said_again_until_they_are_heard(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.send(document("d1"))
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")
        async with site.agent() as agent:
            assert [s["status"] for s in site.statuses].count("SUCCEEDED") == 2
            agent.deployer.reported("d1")
        async with site.agent():
            assert [s["status"] for s in site.statuses].count("SUCCEEDED") == 2

    run(tmp_path, body)


def test_a_damaged_journal_is_no_failure_to_start(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1"))
        (site.state / "deployments/journal.json").write_bytes(b"\0" * 100)
        async with site.agent() as agent:
            assert agent.recovered is not None
            assert (await agent.deploy(document("d2")))["status"] == "SUCCEEDED"
            assert agent.store.numbers() == [1, 2]

    run(tmp_path, body)


def test_a_journal_that_cannot_be_written_stops_the_swap(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with site.agent() as agent:
            await agent.deploy(document("d1"))
            blocker = site.state / "deployments/journal.json.new"

            def block(status: dict[str, Any]) -> None:
                if status["phase"] == "warming":
                    blocker.mkdir()  # the journal's next write fails with EISDIR, as root too

            site.hooks.append(block)
            last = await agent.deploy(document("d2"))
            assert code(last) == ("FAILED", "STATE_UNWRITABLE")
            assert (agent.current(), agent.workers.running) == ("d1", 1)
            site.hooks.clear()
            blocker.rmdir()
            assert (await agent.deploy(document("d3")))["status"] == "SUCCEEDED"

    run(tmp_path, body)


def test_named_interpreters_are_probed(tmp_path: Path) -> None:
    (tmp_path / "bare").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / "bare").chmod(0o755)

    async def body(site: Site) -> None:
        interpreters = {"mine": sys.executable, "bare": "bare", "gone": "/nowhere/python"}
        site.settings = replace(site.settings, policy=Policy(interpreters=interpreters))
        async with site.agent() as agent:
            assert (await agent.deploy(document("d1", function={"Interpreter": "mine"})))["status"] == "SUCCEEDED"
            bare = await agent.deploy(document("d2", function={"Interpreter": "bare"}))
            assert code(bare) == ("FAILED", "INTERPRETER_INCOMPLETE")
            assert "-m pip install msgpack numpy" in bare["reason"]["message"]
            gone = await agent.deploy(document("d3", function={"Interpreter": "gone"}))
            assert code(gone) == ("FAILED", "INTERPRETER_MISSING")

    run(tmp_path, body)


def test_host_links_follow_current_where_the_policy_allows(tmp_path: Path, stick: Stick) -> None:
    uri = stick.put("deploy-r", "m.tar.gz", archive(1))
    host = tmp_path / "host"

    async def body(site: Site) -> None:
        def placed(id: str, where: Path) -> bytes:
            return document(id, uri).replace(b'"/ml/m"', json.dumps(str(where)).encode())

        async with site.agent() as agent:
            await agent.deploy(placed("d1", host / "a/model"))
            assert (host / "a/model/model.json").read_bytes() == b"1"
            stick.put("deploy-r", "m.tar.gz", archive(2))
            (host / "taken").write_text("mine")
            last = await agent.deploy(placed("d2", host / "taken"))
            assert last["status"] == "SUCCEEDED"
            assert any("host/taken" in warning for warning in last["warnings"])
            assert (host / "taken").read_text() == "mine"
            assert not (host / "a/model").is_symlink()
            outside = await agent.deploy(placed("d3", tmp_path / "outside"))
            assert any("policy.destinations" in warning for warning in outside["warnings"])
            assert not (tmp_path / "outside").exists()

    run(tmp_path, body)


def test_followers_hear_what_is_reported(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        heard: list[dict[str, Any]] = []
        async with site.agent() as agent:
            with agent.deployer.followed(heard.append):
                await agent.deploy(document("d1"))
            assert heard == site.statuses
            await agent.deploy(document("d2"))
            assert all(s["deploymentId"] == "d1" for s in heard)

    run(tmp_path, body)


def test_the_journal_is_small_after_many_deployments(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with site.agent() as agent:
            for i in range(8):
                await agent.deploy(document(f"d{i}"))
            journal: Journal = agent.store.journal.load()
            assert (journal.active, journal.waiting, journal.last_group) == (None, None, 8)
            assert os.listdir(site.state / "deployments/documents") == []
            assert agent.store.numbers() == [6, 7, 8]

    run(tmp_path, body)
