"""What the product promises under faults; scripts/soak runs the same with full counts and keeps what it prints.

Each fault is injected for real: SIGKILL to real processes, a real broker that goes and comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cli import commands
from agent.errors import AgentError
from tests.agent_kit import Core, by_hand, function, layers, subscription
from tests.conftest import Site
from tests.load_kit import Load
from tests.mqtt_kit import wait_until
from tests.test_main_job import X, group, put_model


def figure(record: Any, **values: object) -> None:
    """Prints a line that scripts/soak keeps, and hands it to pytest's report."""
    for name, value in values.items():
        record(name, value)
    print("FIGURE " + json.dumps(values))


def kill_one(pids: list[int]) -> bool:
    """Kills one of them that lives: the workers of the group before end by themselves meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def test_replacing_models_and_killing_workers_loses_nothing(site: Site, soak: bool, record_property: Any) -> None:
    requests, deployments, kills = (20_000, 10, 5) if soak else (3_000, 4, 2)
    made = {seed: put_model(site, seed, key=f"m{seed}.tar.gz") for seed in range(deployments + 1)}
    seeds = {each["digest"]: seed for seed, each in made.items()}
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(group("d0", made[0]["uri"], Processes=2))
        load = Load(device, "sensors/a/x", lambda n: {"x": [(n % 97) / 97 + i / 16 for i in range(16)], "n": n})
        done = threading.Event()
        troubles: list[BaseException] = []

        def trouble() -> None:
            try:
                killed = 0
                for number in range(1, deployments + 1):
                    core.deploy(group(f"d{number}", made[number]["uri"], Processes=2))
                    if killed < kills:
                        wait_until(lambda: kill_one(core.worker_pids()), "a worker to kill")
                        killed += 1
                assert killed == kills
            except BaseException as error:
                troubles.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=trouble)
        thread.start()
        while load.count < requests or not done.is_set():
            load.run(500)
        thread.join()
        assert not troubles, troubles
        answers = load.answers
        assert len(answers) == load.count
        versions = set()
        for name, got in answers.items():
            assert len(got) == 1, f"{name} was answered {len(got)} times"
            seed = seeds[got[0]["meta"]["version"]]
            n = int(name.rpartition("-")[2])
            x = [(n % 97) / 97 + i / 16 for i in range(16)]
            np.testing.assert_allclose(got[0]["scores"], by_hand(layers(seed), x), atol=1e-5)
            versions.add(seed)
        assert len(versions) > 1
        figure(
            record_property,
            requests=load.count,
            deployments=deployments,
            workers_killed=kills,
            lost=0,
            answered_twice=0,
        )


PHASES = ("received", "fetching", "unpacking", "staged", "warming", "swapping", "turned", "committed")


@pytest.mark.parametrize("victim", ["agent", "installer"])
def test_a_kill_in_any_phase_leaves_a_whole_group_that_answers(
    site: Site, soak: bool, record_property: Any, victim: str
) -> None:
    """SIGKILL in a phase of a deployment; after the restart the function answers with no cloud and no store."""
    phases = PHASES if victim == "agent" else ("fetching", "unpacking")
    kills = 10 if soak else 1
    chance = random.Random(7)
    first = put_model(site, 1, key="first.tar.gz")
    seeds = {first["digest"]: 1}
    core = site.core()
    core.start()
    core.wait_linked()
    core.deploy(group("first", first["uri"]))
    try:
        for number in range(kills * len(phases)):
            phase = phases[number % len(phases)]
            fresh = put_model(site, 1000 + number, key=f"fresh{number}.tar.gz")
            seeds[fresh["digest"]] = 1000 + number
            strike(core, victim, phase, group(f"k{number}", fresh["uri"]), chance.random() * 0.02)
            if victim == "agent":
                site.cloud.stop()
                core.store_reachable = False
                core.start()
            core.wait_ready("scores")
            assert_whole(core)
            with site.device(f"device-{number}") as device:
                load = Load(device, "sensors/a/x", lambda n: {"x": X})
                load.run(3)
            for (answer,) in load.answers.values():
                expected = by_hand(layers(seeds[answer["meta"]["version"]]), X)
                np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
            if victim == "agent":
                core.stop()
                core.store_reachable = True
                site.cloud.start()
                core.start()
                core.wait_linked()
            wait_until(lambda: core.status()["state"]["deployment"]["status"] != "IN_PROGRESS", "its end", 60)
    finally:
        core.kill()
    figure(record_property, victim=victim, kills_in_each_phase=kills, phases=list(phases), function_answered="always")


def strike(core: Core, victim: str, phase: str, document: dict[str, Any], after_s: float) -> None:
    """Deploys and kills the victim once the deployment is in `phase`; ``turned``: once `current` leads elsewhere."""
    assert core.process
    agent = core.process.pid
    before = os.readlink(core.state / "current")

    def kill() -> None:
        time.sleep(after_s if phase in ("fetching", "warming") else 0)
        if victim == "agent":
            os.kill(agent, signal.SIGKILL)
        else:
            for pid in core.installer_pids():
                os.kill(pid, signal.SIGKILL)

    def watch() -> None:
        while os.readlink(core.state / "current") == before:
            time.sleep(0)
        kill()

    watcher = threading.Thread(target=watch)
    if phase == "turned":
        watcher.start()
    struck = phase == "turned"
    with contextlib.suppress(AgentError):  # the agent goes away before it has answered
        place = commands.Place(core.config)
        for status in commands.deploy(place, json.dumps(document).encode(), wait=True, timeout_s=60):
            if not struck and (status.get("phase") == phase or (phase == "received" and status["phase"])):
                struck = True
                kill()
    if phase == "turned":
        watcher.join(30)
    assert struck, f"the deployment was never seen in {phase}"
    if victim == "agent":
        core.process.wait(30)


def assert_whole(core: Core) -> None:
    """`current` leads to a group whose files all have the hashes of their manifests."""
    import hashlib

    current = core.state / "current"
    assert os.readlink(current).startswith("groups/")
    links = list((current / "resources").iterdir())
    assert links
    for link in links:
        found = link.resolve()
        manifest = json.loads((found / "manifest.json").read_text())
        files = {p.relative_to(found / "tree").as_posix() for p in (found / "tree").rglob("*") if p.is_file()}
        listed = {each["path"]: each["sha256"] for each in manifest["files"]}
        assert files == set(listed)
        for path, digest in listed.items():
            assert hashlib.sha256((found / "tree" / path).read_bytes()).hexdigest() == digest


def test_a_broker_that_restarts_under_load_costs_no_acknowledged_request(
    site: Site, soak: bool, record_property: Any
) -> None:
    restarts = 10 if soak else 3
    made = put_model(site, 1)
    back: list[float] = []
    with site.core() as core, site.device(session_expiry_s=3600) as device:
        core.wait_linked()
        core.deploy(group("v1", made["uri"]))
        load = Load(device, "sensors/a/x", lambda n: {"x": X}, window=20, rate=400)
        stop = threading.Event()

        def restart() -> None:
            for _ in range(restarts):
                time.sleep(1.5)
                site.local.stop()
                site.local.start()
                began = time.monotonic()
                wait_until(lambda: core.status()["links"]["local"]["connected"], "the link", 30)
                back.append(time.monotonic() - began)
            stop.set()

        thread = threading.Thread(target=restart)
        thread.start()
        while not stop.is_set():
            load.run(200)
        thread.join()
        assert len(load.answers) == load.count
        twice = load.duplicates()  # at least once over a broker's end; a duplicate carries the same id
        figure(
            record_property,
            broker_restarts=restarts,
            requests=load.count,
            lost=0,
            answered_twice=twice,
            back_s=max(back),
        )
        assert max(back) < 2.0


def test_a_broker_that_is_killed_is_survived_by_asking_again(site: Site, soak: bool, record_property: Any) -> None:
    kills = 10 if soak else 2
    made = put_model(site, 1)
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(group("v1", made["uri"]))
        load = Load(device, "sensors/a/x", lambda n: {"x": X}, window=20, ask_again_s=1.0, rate=300)
        for _ in range(kills):
            killer = threading.Timer(0.3, lambda: (site.local.kill(), site.local.start()))
            killer.start()
            load.run(300)
            killer.join()
        assert len(load.answers) == load.count
        figure(
            record_property,
            broker_kills=kills,
            requests=load.count,
            asked_again=load.asked_again,
            answered_twice=load.duplicates(),
            lost=0,
        )


def test_a_slow_function_beside_a_fast_one_holds_up_nobody(site: Site, soak: bool, record_property: Any) -> None:
    """The fast one's answers keep coming while the slow one sleeps; the figures are for scripts/soak.

    Alone and beside are measured in turn, since the machine's own speed drifts.
    """
    seconds, rounds, count = (2.0, 5, 1000) if soak else (1.0, 1, 300)
    routes = [
        subscription("local", "fast/x", "function:echo"),
        subscription("local", "slow/x", "function:sleepy"),
        subscription("function:sleepy", "slow/x/sleepy", "local"),
    ]
    document = {
        "DeploymentId": "two",
        "Functions": [function("echo"), function("sleepy", Timeout=30)],
        "Subscriptions": routes,
    }
    with site.core() as core, site.device() as device, site.device("slow-device") as slow_device:
        core.wait_linked()
        core.deploy(document)
        alone = Load(device, "fast/x", lambda n: {"n": n}, window=1)
        beside = Load(device, "fast/x", lambda n: {"n": n}, window=1)
        slow = Load(slow_device, "slow/x", lambda n: {"seconds": seconds}, window=4)
        for _ in range(rounds):
            alone.listen().run(count)
            beside.listen()
            stop = threading.Event()
            slow_thread = threading.Thread(target=keep_asking, args=(slow, stop))
            slow_thread.start()
            wait_until(lambda: slow.open, "the slow requests under way")
            beside.run(count)
            assert slow.open, "the slow function had nothing to do: nothing was measured"
            stop.set()
            slow_thread.join()
        for load in (alone, beside, slow):
            assert all(len(each) == 1 for each in load.answers.values())
        # No bound on time in a test; but while the slow one sleeps, the fast one is never held for as long as it.
        assert max(beside.latency_s.values()) < seconds
        figure(
            record_property,
            alone_p99_ms=round(alone.p(0.99) * 1000, 3),
            beside_p99_ms=round(beside.p(0.99) * 1000, 3),
            ratio=round(beside.p(0.99) / alone.p(0.99), 3),
        )


def keep_asking(load: Load, stop: threading.Event) -> None:
    """Keeps the load's window full until `stop`."""
    while not stop.is_set():
        load.run(load.window)


def test_the_agent_process_is_small(site: Site, record_property: Any) -> None:
    """boto3, numpy and the runtimes are never loaded; the figure is for the README."""
    made = put_model(site, 1)
    with site.core() as core:
        core.wait_linked()
        core.deploy(group("v1", made["uri"]))
        assert core.process
        maps = Path(f"/proc/{core.process.pid}/maps").read_text()
        for unwanted in ("numpy", "onnxruntime", "libdlr"):
            assert f"/{unwanted}" not in maps
        rollup = Path(f"/proc/{core.process.pid}/smaps_rollup").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
        figure(
            record_property,
            rss_mb=round(sizes["Rss"] / 1024, 1),
            pss_mb=round(sizes["Pss"] / 1024, 1),
            uss_mb=round((sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024, 1),
        )
