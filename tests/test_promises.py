"""What the product promises under faults; scripts/soak runs the same with full counts and keeps what it prints.

Each fault is injected for real: SIGKILL to real processes, a real broker that goes and comes back.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.agent_kit import CORE, Core, by_hand, function, layers, subscription
from tests.conftest import Site
from tests.load_kit import Load
from tests.mqtt_kit import wait_until
from tests.test_main_job import X, group, put_model


def figure(record: Any, **values: object) -> None:
    """Prints a line that scripts/soak keeps, and hands it to pytest's report."""
    for name, value in values.items():
        record(name, value)
    print("FIGURE " + json.dumps(values))


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
                        os.kill(core.worker_pids()[0], signal.SIGKILL)
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


def test_a_kill_in_any_phase_of_a_deployment_leaves_a_whole_group_that_answers(
    site: Site, soak: bool, record_property: Any
) -> None:
    """SIGKILL of the agent somewhere in a deployment; then the function answers with no cloud and no store."""
    kills = 60 if soak else 10
    made = [put_model(site, seed, key=f"m{seed}.tar.gz") for seed in (1, 2)]
    seeds = {made[0]["digest"]: 1, made[1]["digest"]: 2}
    core = site.core()
    core.start()
    core.wait_linked()
    core.deploy(group("first", made[0]["uri"]))
    seen: dict[str, int] = {}
    for attempt in range(kills):
        with site.observer(f"observer-{attempt}") as cloud, site.device(f"device-{attempt}") as device:
            # A new function's folder each time, so that something is fetched, unpacked and synced each time.
            fresh = put_model(site, 1000 + attempt, key=f"fresh{attempt}.tar.gz")
            seeds[fresh["digest"]] = 1000 + attempt
            cloud.subscribe(f"marram/{CORE}/deployments/#")
            cloud.publish(f"marram/{CORE}/deployments", json.dumps(group(f"k{attempt}", fresh["uri"])))
            wait_until(lambda cloud=cloud: cloud.received, "the first status")
            time.sleep(0.9 * attempt / kills)  # where in the deployment the kill falls, swept over its length
            status = json.loads(cloud.received[-1].payload)
            seen[status.get("phase") or status["status"]] = seen.get(status.get("phase") or status["status"], 0) + 1
            core.kill()
            site.cloud.stop()
            endpoint, core.s3 = core.s3, None
            core.start()
            core.wait_ready("scores")
            assert_whole(core)
            load = Load(device, "sensors/a/x", lambda n: {"x": X})
            load.run(3)
            for (answer,) in load.answers.values():
                np.testing.assert_allclose(
                    answer["scores"], by_hand(layers(seeds[answer["meta"]["version"]]), X), atol=1e-5
                )
            core.s3 = endpoint
            core.stop()
            site.cloud.start()
            core.start()
            core.wait_linked()
            wait_until(
                lambda: (core.status()["state"]["deployment"] or {}).get("status") != "IN_PROGRESS", "its end", 60
            )
    core.kill()
    figure(record_property, agent_kills=kills, killed_in=seen)


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
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(group("v1", made["uri"]))
        load = Load(device, "sensors/a/x", lambda n: {"x": X}, window=20, rate=400)
        stop = threading.Event()

        def restart() -> None:
            for _ in range(restarts):
                time.sleep(0.5)
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
    """The fast one's answers keep coming while the slow one sleeps; the figures are for scripts/soak."""
    seconds = 2.0 if soak else 1.0
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
        count = 2000 if soak else 300
        alone = Load(device, "fast/x", lambda n: {"n": n}, window=1)
        alone.run(count)
        slow = Load(slow_device, "slow/x", lambda n: {"seconds": seconds}, window=4)
        slow_thread = threading.Thread(target=lambda: slow.run(6 if soak else 3))
        slow_thread.start()
        wait_until(lambda: slow.open, "the slow requests under way")
        beside = Load(device, "fast/x", lambda n: {"n": n}, window=1)
        beside.run(count)
        overlapped = slow.open > 0
        slow_thread.join()
        assert overlapped, "the slow function was done before the fast one: nothing was measured"
        assert all(
            len(each) == 1 for each in (*alone.answers.values(), *beside.answers.values(), *slow.answers.values())
        )
        # No bound on time in a test; but while the slow one sleeps, the fast one is never held for as long as it.
        assert max(beside.latency_s.values()) < seconds
        figure(
            record_property,
            alone_p99_ms=round(alone.p(0.99) * 1000, 3),
            beside_p99_ms=round(beside.p(0.99) * 1000, 3),
            ratio=round(beside.p(0.99) / alone.p(0.99), 3),
        )


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
