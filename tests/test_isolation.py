"""Attacks by a function: each is stopped at the tier that promises so, and the others are unharmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_kit import Core, function, subscription
from tests.conftest import Site
from tests.load_kit import Load
from tests.mqtt_kit import PlainClient, wait_until
from tests.test_main_job import ask

SECRET = "the-victims-own-secret"
AS_ROOT = os.geteuid() == 0
IDS = range(61184, 65520)


CONTAINER = {"IsolationMode": "GreengrassContainer"}


def burglar(id: str = "burglar", *, execution: Any = None, marram: Any = None, **config: Any) -> dict[str, Any]:
    made = function(id, arn="function:burglar", marram=marram, **config)
    if execution:
        made["FunctionConfiguration"]["Environment"]["Execution"] = execution
    return made


def group(id: str, *functions: dict[str, Any]) -> dict[str, Any]:
    victim = function("echo", MemorySize=400_000)
    victim["FunctionConfiguration"]["Environment"]["Variables"] = {"SECRET": SECRET}
    routes = [subscription("local", f"try/{each['Id']}", f"function:{each['Id']}") for each in (*functions, victim)]
    return {"DeploymentId": id, "Functions": [*functions, victim], "Subscriptions": routes}


class Attack:
    """A device that has functions attacked."""

    def __init__(self, device: PlainClient) -> None:
        self._device = device
        self._count = 0

    def start(self, event: dict[str, Any], to: str = "burglar") -> str:
        self._count += 1
        topic = f"replies/{self._count}"
        self._device.subscribe(topic)
        self._device.publish(f"try/{to}", json.dumps(event), response_topic=topic, correlation=b"1")
        return topic

    def ask(self, event: dict[str, Any], to: str = "burglar") -> dict[str, Any]:
        self._count += 1
        return dict(json.loads(ask(self._device, f"try/{to}", event, str(self._count)).payload))

    def outcome(self, topic: str) -> dict[str, Any]:
        answers = lambda: [m for m in list(self._device.received) if m.topic == topic]  # noqa: E731
        wait_until(answers, f"an answer on {topic}")
        return dict(json.loads(answers()[0].payload))

    def refused(self, **event: Any) -> str:
        answer = self.ask(event)
        assert "refused" in answer, answer
        return str(answer["refused"])

    def got(self, **event: Any) -> Any:
        answer = self.ask(event)
        assert "got" in answer, answer
        return answer["got"]

    def others_are_well(self) -> None:
        assert self.ask({"n": 1}, "echo")["echo"] == {"n": 1}


@pytest.fixture
def core(site: Site) -> Iterator[Core]:
    with site.core(policy={"allow_root": True}) as core:
        core.wait_linked()
        yield core


@pytest.fixture
def attack(site: Site) -> Iterator[Attack]:
    with site.device() as device:
        yield Attack(device)


def tier_of(core: Core, id: str = "burglar") -> str:
    return str(core.status()["state"]["isolation"][id])


@pytest.mark.parametrize("execution", [None, CONTAINER], ids=["absent", "asked for"])
def test_a_container_shows_nothing_of_the_core_and_of_others(
    site: Site, core: Core, attack: Attack, execution: Any
) -> None:
    last = core.deploy(group("d1", burglar(execution=execution, ExecArgs="--level 3", Timeout=20)))
    assert any("IsolationMode is absent" in text for text in last["warnings"])  # of echo, and of this one
    assert tier_of(core) == ("container" if AS_ROOT and execution else "namespace")
    seen = attack.got(**{"try": "look"})
    assert seen["interfaces"] == ["lo"]
    assert not set(seen["devices"]) - {
        "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm"
    }  # fmt: skip
    assert seen["arguments"] == ["--level", "3"]
    assert all(int(line.split()[1], 16) == 0 for line in seen["privileges"]), seen["privileges"]
    uid, gid, groups = seen["user"]
    if AS_ROOT and execution:
        assert uid == gid == groups[0]
        assert uid in IDS
    else:
        assert uid == os.geteuid(), "without RunAs a worker is the agent's user, unless a container is asked for"
    assert seen["processes"] == [1]
    assert attack.got(**{"try": "spy", "secret": SECRET}) == []
    assert core.process
    assert attack.refused(**{"try": "end", "pid": core.process.pid}) in ("ESRCH", "EPERM")
    for path in ("spool.db", "agent.sock", "agent.lock", "data/echo", "current/deployment.json"):
        assert attack.refused(**{"try": "read", "path": str(core.state / path)}) in ("ENOENT", "EACCES")
    for path in ("/etc/marram-burglar", "/usr/marram-burglar", "/proc/sys/kernel/hostname", str(core.state / "x")):
        assert attack.refused(**{"try": "write", "path": path}) in ("EROFS", "EACCES", "ENOENT")
    assert attack.refused(**{"try": "read", "path": str(core.config)}) == "ENOENT"
    assert attack.got(**{"try": "write", "path": "/tmp/mine"}) == "written"
    assert attack.got(**{"try": "write", "path": "mine"}) == "written"
    assert not Path("/tmp/mine").exists()
    assert attack.refused(**{"try": "connect", "port": site.local.port}) in ("ECONNREFUSED", "ENETUNREACH")
    attack.others_are_well()


def test_what_a_function_is_granted_it_has(site: Site, core: Core, attack: Attack) -> None:
    core.deploy(group("d1", burglar(marram={"Network": True})))
    assert attack.got(**{"try": "connect", "port": site.local.port}) == "connected"


def test_a_function_that_is_not_contained_is_a_process_and_no_more(site: Site, core: Core, attack: Attack) -> None:
    bare = {"IsolationMode": "NoContainer"}
    core.deploy(group("d1", burglar(execution=bare)))
    assert tier_of(core) == "process"
    assert attack.got(**{"try": "look"})["user"][0] == os.geteuid()
    assert attack.got(**{"try": "connect", "port": site.local.port}) == "connected"
    demanding = burglar(execution=bare, marram={"Isolation": "user"})
    last = core.deploy(group("d2", demanding), expect="FAILED")
    assert last["reason"]["code"] == "ISOLATION_NOT_AVAILABLE"
    attack.others_are_well()


@pytest.mark.skipif(not AS_ROOT, reason="only root may change the user")
def test_a_function_runs_as_whom_the_document_says(site: Site, core: Core, attack: Attack) -> None:
    some = {"RunAs": {"Uid": 4321, "Gid": 4322}}
    core.deploy(group("d1", burglar(execution=some)))
    assert attack.got(**{"try": "look"})["user"] == [4321, 4322, [4322]]
    assert attack.got(**{"try": "write", "path": "mine"}) == "written"
    core.deploy(group("d2", burglar(execution={**some, "IsolationMode": "NoContainer"}, marram={"Isolation": "user"})))
    assert tier_of(core) == "user"
    assert attack.got(**{"try": "look"})["user"][:2] == [4321, 4322]
    root = {"RunAs": {"Uid": 0, "Gid": 0}}
    core.deploy(group("d3", burglar(execution=root)))
    assert tier_of(core) == "namespace"
    last = core.deploy(group("d4", burglar(execution=root, marram={"Isolation": "container"})), expect="FAILED")
    assert last["reason"]["code"] == "ISOLATION_NOT_AVAILABLE"


def processes_of(name: str) -> list[int]:
    """The processes whose environment says that they are that function's, and what they have started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"/data/{name}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("execution", [None, CONTAINER], ids=["absent", "asked for"])
def test_a_fork_bomb_ends_with_its_worker(site: Site, core: Core, attack: Attack, execution: Any) -> None:
    core.deploy(group("d1", burglar(Timeout=2, execution=execution)))
    bomb = attack.start({"try": "fork"})
    attack.others_are_well()
    assert attack.outcome(bomb)["error"]["code"] in ("FUNCTION_TIMEOUT", "WORKER_HUNG")
    attack.others_are_well()
    wait_until(lambda: len(processes_of("burglar")) == 1, "no process but the new worker")
    assert attack.got(**{"try": "look"})["processes"] == [1] or not AS_ROOT


@pytest.mark.parametrize("how", ["allocate", "allocate_in_children"])
def test_memory_without_end_is_stopped(site: Site, core: Core, attack: Attack, how: str) -> None:
    core.deploy(group("d1", burglar(MemorySize=200_000, Timeout=50)))
    outcome = attack.ask({"try": how})
    assert outcome["error"]["code"] == "OUT_OF_MEMORY", outcome
    assert "MemorySize" in outcome["error"]["message"]
    attack.others_are_well()
    assert attack.got(**{"try": "look"})


def test_a_disk_is_not_filled(site: Site, core: Core, attack: Attack) -> None:
    core.deploy(group("d1", burglar(Timeout=50, marram={"DiskSize": 8 * 1024})))
    assert attack.refused(**{"try": "fill", "directory": ".", "files": 1, "mib": 9}) == "EFBIG"
    assert attack.refused(**{"try": "fill", "directory": "/tmp", "files": 40, "mib": 4}) == "ENOSPC"
    outcome = attack.ask({"try": "fill", "directory": ".", "files": 500, "mib": 2})
    assert outcome["error"]["code"] == "DISK_SIZE_EXCEEDED", outcome
    attack.others_are_well()
    wait_until(lambda: "got" in attack.ask({"try": "look"}), "the function to be there again")


ENTER = """
import ctypes, encodings.ascii, errno, json, os, sys  # what is below /root cannot be read later
sys.path.insert(0, {path!r})
from functions import errors, isolation, mounts
if {denied!r}:  # no kernel knows these flags: as on a machine that allows none of it
    isolation.CLONE_NEWNS = mounts.CLONE_NEWNS = mounts.CLONE_NEWUSER = -1
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({user}, {user}, {user})
    os.setresuid({user}, {user}, {user})
    ctypes.CDLL(None).prctl(4, 1)  # as a process of that user that was started by exec
outside = os.getppid()
os.chdir({state!r} + "/home")
def attempt(what, *args):
    try:
        what(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
try:
    entered = isolation.enter({asked!r})
except errors.StartError as error:
    print(json.dumps([error.code]))
else:
    print(json.dumps([
        entered.isolation, os.getpid(), attempt(os.kill, outside, 0), attempt(open, {state!r} + "/secret"),
        attempt(open, "mine", "w"), attempt(open, "/etc/marram-burglar", "w"), len(entered.warnings),
    ]), flush=True)
"""


def enter(*, denied: bool = False, demanded: str | None = None) -> list[Any]:
    """What becomes of a worker that tries to isolate itself as a user who is not root."""
    user = 65534 if AS_ROOT else os.geteuid()
    with tempfile.TemporaryDirectory() as state:
        os.chmod(state, 0o755)
        for each in ("home", "stage"):
            os.mkdir(f"{state}/{each}")
            os.chown(f"{state}/{each}", user, -1)
        Path(state, "secret").write_text(SECRET)
        asked = {
            "isolation": {
                "contained": True, "demanded": demanded, "user": None, "network": False, "devices": [],
                "hidden": [state], "needed": [[f"{state}/home", f"{state}/home", True]], "tmp_bytes": 1 << 20,
                "limits": {"tasks": 64, "file_bytes": 1 << 20},
            },
            "mounts": {"read_only": [state], "writable": [f"{state}/home"], "shown": [], "stage": f"{state}/stage"},
        }  # fmt: skip
        root = str(Path(__file__).parent.parent)
        code = ENTER.format(path=root, denied=denied, user=user, state=state, asked=asked)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))


def test_an_agent_that_is_not_root_contains_its_functions_too() -> None:
    tier, pid, signalled, secret, own, etc, warnings = enter()
    assert (tier, pid, signalled, secret, own, warnings) == ("namespace", 1, "ESRCH", "ENOENT", "done", 0)
    assert etc in ("EROFS", "EACCES")


def test_a_machine_that_allows_no_namespaces_says_so() -> None:
    tier, *_, warnings = enter(denied=True)
    assert (tier, warnings > 0) == ("process", True)
    assert enter(denied=True, demanded="namespace") == ["ISOLATION_NOT_AVAILABLE"]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("hang", "WORKER_HUNG"),
        ("crash", "WORKER_CRASHED"),
        ("allocate", "OUT_OF_MEMORY"),
        ("linger", "FUNCTION_TIMEOUT"),
    ],
)
def test_a_bad_function_does_not_slow_the_others_down(
    site: Site, core: Core, attack: Attack, soak: bool, record_property: Any, how: str, code: str
) -> None:
    """In turns, alone and beside the bad one: so what else the machine does counts on both sides."""
    rounds, count = (20, 250) if soak else (2, 40)
    core.deploy(group("d1", burglar(Timeout=2, MemorySize=200_000)))
    with site.device("load") as device:
        alone, beside = (Load(device, "try/echo", lambda n: {"n": n}, window=1, rate=150) for _ in range(2))
        for _ in range(rounds):
            alone.listen().run(count)
            bad = attack.start({"try": how})
            beside.listen().run(count)
            assert attack.outcome(bad)["error"]["code"] == code
            attack.got(**{"try": "look"})  # else its workers are replaced after longer and longer waits
    assert len(alone.answers) == len(beside.answers) == rounds * count
    assert not any("error" in each for answers in beside.answers.values() for each in answers)
    ratio = beside.p(0.99) / alone.p(0.99)
    record_property("p99_alone_ms", round(alone.p(0.99) * 1000, 2))
    record_property("p99_beside_ms", round(beside.p(0.99) * 1000, 2))
    record_property("ratio", round(ratio, 2))
    assert not soak or ratio < 1.5
