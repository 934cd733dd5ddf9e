"""A new group on trial, with a real agent: health checks before the swap, probation after it, and the way back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.archive import pack
from agent.cli import commands
from agent.demo.formats import write_onnx
from agent.errors import AgentError
from tests.agent_kit import BUCKET, Core, by_hand, function, layers, resource
from tests.conftest import Site
from tests.load_kit import Load
from tests.mqtt_kit import wait_until
from tests.test_main_job import ROUTES, X, ask, put_model

FAULTY = "function:faulty"


def golden(seed: int, **more: Any) -> dict[str, Any]:
    """A health check that the model of `seed` passes."""
    outputs = {"probabilities": [by_hand(layers(seed), X).tolist()]}
    return {"Requests": [{"Inputs": {"data": [X]}, "Outputs": outputs}], **more}


def document(
    id: str, uri: str, *, arn: str = "function:scores", mode: str = "well", model: dict[str, Any] | None = None,
    **marram: Any,
) -> dict[str, Any]:  # fmt: skip
    made = function("scores", arn=arn, models=("model",), Timeout=5)
    made["FunctionConfiguration"]["Environment"]["Variables"] = {"MODE": mode}
    values = {
        "DeploymentId": id, "Resources": [resource(uri, **(model or {}))], "Functions": [made], "Subscriptions": ROUTES,
    }  # fmt: skip
    return {**values, **({"Marram": marram} if marram else {})}


def failed(core: Core, document: dict[str, Any]) -> dict[str, str]:
    reason: dict[str, str] = core.deploy(document, expect="FAILED")["reason"]
    return reason


def version_in_use(site: Site, id: str) -> str:
    with site.device(f"asks-{id}") as device:
        return str(json.loads(ask(device, "sensors/a/x", {"x": X}, id).payload)["meta"]["deployment"])


def turn(core: Core, command: str, *, wait: bool = True) -> dict[str, Any]:
    *_, last = commands.turn(core.config, command, wait=wait, timeout_s=60)
    return last


def marram(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agent", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def running(site: Site) -> Iterator[tuple[Site, Core, str]]:
    """A core that runs the model of seed 1 as v1; and the model's uri."""
    uri = put_model(site, 1)["uri"]
    with site.core() as core:
        core.wait_linked()
        core.deploy(document("v1", uri))
        yield site, core, uri


def put_sick_model(site: Site, key: str) -> str:
    """A model that loads, runs, and answers NaN."""
    tree = site.directory / "sick"
    tree.mkdir()
    (weights, bias), last = layers(1)
    write_onnx(tree / "model.onnx", [(weights, bias * np.float32("nan")), last])
    made = pack(tree, site.directory / "sick.tar.gz")
    return site.s3.put(BUCKET, key, Path(made["archive"]).read_bytes())


# -- health checks ----------------------------------------------------------------------------------------------------


def test_a_model_that_answers_as_it_should_is_deployed(running: tuple[Site, Core, str]) -> None:
    _, core, uri = running
    last = core.deploy(document("v2", uri, model={"HealthCheck": golden(1, Tolerance=1e-4, MaxLatencyMs=10_000)}))
    assert last["phase"] == "committed"


@pytest.mark.parametrize(
    ("check", "code", "words"),
    [
        (golden(2), "HEALTH_CHECK_FAILED", ("model", "request 1", "probabilities[0][0]", "expected", "got")),
        (golden(1, MaxLatencyMs=0.001), "HEALTH_CHECK_SLOW", ("median", "0.001 ms")),
        ({"Requests": [{"Inputs": {"data": [X[:3]]}}]}, "HEALTH_CHECK_FAILED", ("request 1", "shape")),
        ({"Requests": [{"Inputs": {"data": [X]}, "Outputs": {"labels": [1]}}]}, "HEALTH_CHECK_FAILED", ("labels",)),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fails_its_deployment(
    running: tuple[Site, Core, str], check: dict[str, Any], code: str, words: tuple[str, ...]
) -> None:
    site, core, uri = running
    reason = failed(core, document("bad", uri, model={"HealthCheck": check}))
    assert reason["code"] == code
    assert [word for word in words if word not in reason["message"]] == []
    assert version_in_use(site, "after") == "v1"


def test_a_model_that_answers_nan_is_found_out_and_not_tried_again_by_itself(running: tuple[Site, Core, str]) -> None:
    site, core, _ = running
    uri = put_sick_model(site, "sick.tar.gz")
    check = {"HealthCheck": {"Requests": [{"Inputs": {"data": [X]}}]}}
    last = core.deploy(document("nan", uri, model=check), expect="FAILED")
    assert last["reason"]["code"] == "HEALTH_CHECK_FAILED"
    assert "NaN" in last["reason"]["message"]
    (digest,) = last["quarantined"]
    assert core.status()["quarantine"] == [{"digests": [digest], "deploymentId": "nan", "code": "HEALTH_CHECK_FAILED"}]
    core.kill()
    core.start()
    again = failed(core, document("again", uri))
    assert again["code"] == "QUARANTINED"
    assert digest in again["message"]
    by_digest = core.deploy(document("named", uri, model={"Digest": digest}), expect="REJECTED")
    assert by_digest["reason"]["code"] == "QUARANTINED"
    assert core.deploy(document("asked for", uri) | {"DeploymentId": "asked", "Marram": {"RetryQuarantined": True}})
    assert core.status()["quarantine"] == []


@pytest.mark.parametrize(
    ("mode", "code", "words"),
    [
        ("raise", "FUNCTION_IMPORT_FAILED", ("RuntimeError", "not today", "__init__.py:")),
        ("exit", "FUNCTION_IMPORT_FAILED", ("SystemExit",)),
        ("crash", "WORKER_CRASHED", ("SIGSEGV",)),
        ("hang", "WORKER_START_TIMEOUT", ("2 s",)),
        ("eat", "OUT_OF_MEMORY", ("MemorySize",)),
    ],
)
def test_a_function_that_cannot_start_leaves_the_old_one_at_work(
    running: tuple[Site, Core, str], mode: str, code: str, words: tuple[str, ...]
) -> None:
    site, core, uri = running
    bad = document("bad", uri, arn="function:unwell", mode=mode)
    bad["Functions"][0]["Marram"] = {"StartTimeout": 2 if mode == "hang" else 60}
    bad["Functions"][0]["FunctionConfiguration"]["MemorySize"] = 200_000
    reason = failed(core, bad)
    assert reason["code"] == code
    assert [word for word in words if word not in reason["message"]] == []
    assert version_in_use(site, "after") == "v1"


def test_a_package_carries_what_its_model_answered(site: Site) -> None:
    tree = site.directory / "model"
    tree.mkdir()
    write_onnx(tree / "model.onnx", layers(1))
    samples = site.directory / "samples.json"
    samples.write_text(json.dumps([{"data": [X]}, {"data": [X[::-1]]}]))
    archive = site.directory / "checked.tar.gz"
    said = marram("package", tree, "--output", archive, "--health", samples, "--tolerance", "0.0001", "--json")
    assert said.returncode == 0, said.stderr
    made = json.loads(said.stdout)
    assert made["files"] == ["marram-health.json", "model.onnx"]
    uri = site.s3.put(BUCKET, "checked.tar.gz", archive.read_bytes())
    with site.core() as core:
        core.wait_linked()
        last = core.deploy(document("v1", uri))
        assert last["resources"][0]["version"] == made["digest"]
        found = core.state / "objects" / made["digest"].removeprefix("sha256:")
        assert [file.name for file in (found / "tree").iterdir()] == ["model.onnx"]
        recorded = json.loads((found / "health.json").read_text())
        got = recorded["Requests"][0]["Outputs"]["probabilities"][0]
        np.testing.assert_allclose(got, by_hand(layers(1), X), atol=1e-6)
        # The same health check in a package of another model: what it answers is not what was recorded.
        write_onnx(tree / "model.onnx", layers(2))
        wrong = pack(tree, site.directory / "wrong.tar.gz", health=(found / "health.json").read_bytes())
        uri = site.s3.put(BUCKET, "wrong.tar.gz", Path(wrong["archive"]).read_bytes())
        assert failed(core, document("v2", uri))["code"] == "HEALTH_CHECK_FAILED"
        broken = pack(tree, site.directory / "broken.tar.gz", health=b'{"Requests": 7}')
        uri = site.s3.put(BUCKET, "broken.tar.gz", Path(broken["archive"]).read_bytes())
        assert failed(core, document("v3", uri))["code"] == "HEALTH_CHECK_INVALID"
        assert version_in_use(site, "after") == "v1"


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        ("no json", "SAMPLES_INVALID"),
        ("{}", "SAMPLES_INVALID"),
        ("[]", "SAMPLES_INVALID"),
        ('[{"data": [[1, 2]]}]', "HEALTH_CHECK_FAILED"),
        ('[{"other": [[1, 2]]}]', "HEALTH_CHECK_FAILED"),
    ],
)
def test_samples_that_cannot_be_recorded_are_refused(tmp_path: Path, samples: str, code: str) -> None:
    tree = tmp_path / "model"
    tree.mkdir()
    write_onnx(tree / "model.onnx", layers(1))
    file = tmp_path / "samples.json"
    file.write_text(samples)
    said = marram("package", tree, "--output", tmp_path / "a.zip", "--health", file)
    assert said.returncode in (1, 78)
    assert said.stderr.startswith(f"marram: {code}: "), said.stderr
    assert not (tmp_path / "a.zip").exists()


# -- probation --------------------------------------------------------------------------------------------------------


def under_load(site: Site, work: Callable[[], None]) -> Load:
    """Does `work` while a device keeps asking, and a little longer; every request was answered once."""
    done = threading.Event()
    troubles: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            troubles.append(error)
        finally:
            done.set()

    with site.device("load") as device:
        load = Load(device, "sensors/a/x", lambda n: {"x": X, "n": n}, window=8, rate=300)
        thread = threading.Thread(target=run)
        thread.start()
        while not done.is_set():
            load.run(50)
        thread.join()
        load.run(50)
    assert not troubles, troubles
    assert [len(got) for got in load.answers.values()] == [1] * load.count
    return load


@pytest.mark.parametrize(
    ("mode", "probation", "code"),
    [
        ("crash", {"Seconds": 30}, "PROBATION_CRASH_LOOP"),
        ("raise", {"Requests": 30}, "PROBATION_ERROR_RATE"),
        ("slow", {"Requests": 30, "MaxLatencyMs": 20}, "PROBATION_SLOW"),
    ],
)
def test_a_group_that_fails_at_work_is_turned_back_by_itself(
    running: tuple[Site, Core, str], mode: str, probation: dict[str, Any], code: str
) -> None:
    """Nothing is lost meanwhile, and what runs is what ran before, with no restart of its worker and no network."""
    site, core, uri = running
    (worker,) = core.worker_pids()
    bad = document("bad", uri, arn=FAULTY, mode=mode, Probation=probation)
    found: list[dict[str, Any]] = []
    load = under_load(site, lambda: found.append(core.deploy(bad, expect="FAILED")))
    assert found[0]["reason"]["code"] == code, found
    assert len(found[0]["quarantined"]) == 1  # the code; the model had run before
    assert {got[0]["meta"]["deployment"] for got in load.answers.values()} == {"v1", "bad"}
    last = sorted(load.answers.items(), key=lambda item: int(item[0].rpartition("-")[2]))[-40:]
    assert [got[0]["meta"]["deployment"] for _, got in last] == ["v1"] * 40
    assert core.status()["state"]["group"] == "v1"
    wait_until(lambda: core.worker_pids() == [worker], "the worker of v1 alone")
    assert os.readlink(core.state / "current") == "groups/1"


def test_a_group_that_works_well_is_committed_once_it_has_answered(running: tuple[Site, Core, str]) -> None:
    site, core, uri = running
    good = document("v2", uri, arn=FAULTY, Probation={"Requests": 40, "MaxLatencyMs": 1000})
    phases: list[str] = []

    def work() -> None:
        place = commands.Place(core.config)
        statuses = commands.deploy(place, json.dumps(good).encode(), wait=True, timeout_s=60)
        phases.extend(status["phase"] for status in statuses)

    under_load(site, work)
    assert phases[-2:] == ["probation", "committed"]
    wait_until(lambda: len(core.worker_pids()) == 1, "the worker of v2 alone")


def test_with_nothing_to_do_the_golden_requests_decide(running: tuple[Site, Core, str]) -> None:
    """The group is committed at the end of its time."""
    site, core, uri = running
    quiet = document("quiet", uri, arn=FAULTY, Probation={"Seconds": 0.3}, model={"HealthCheck": golden(1)})
    assert core.deploy(quiet)["status"] == "SUCCEEDED"
    assert version_in_use(site, "after") == "quiet"


def seen_in_probation(core: Core, document: dict[str, Any]) -> threading.Thread:
    """Begins a deployment and returns when it is in probation."""
    reached = threading.Event()

    def run() -> None:
        with contextlib.suppress(AgentError):
            place = commands.Place(core.config)
            for status in commands.deploy(place, json.dumps(document).encode(), wait=True, timeout_s=60):
                if status["phase"] == "probation":
                    reached.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(60), core.tail()
    return thread


def test_an_agent_killed_in_probation_runs_the_old_group_and_then_goes_on(running: tuple[Site, Core, str]) -> None:
    site, core, uri = running
    thread = seen_in_probation(core, document("v2", uri, arn=FAULTY, Probation={"Seconds": 4}))
    assert os.readlink(core.state / "current") == "groups/2"
    core.kill()
    thread.join()
    site.cloud.stop()
    core.store_reachable = False
    core.start()
    core.wait_ready("scores")
    wait_until(lambda: core.status()["state"]["deployment"]["status"] == "SUCCEEDED", "its end", 60)
    assert version_in_use(site, "after") == "v2"


def test_an_agent_that_dies_in_probation_again_and_again_gives_it_up(running: tuple[Site, Core, str]) -> None:
    site, core, uri = running
    thread = seen_in_probation(core, document("v2", uri, arn=FAULTY, Probation={"Seconds": 60}))
    for _ in range(12):  # three that go on with it; one that is killed before it does is no try
        core.kill()
        thread.join()
        core.start()
        core.wait_ready("scores")

        def ended_or_on_trial() -> bool:
            latest = core.status()["state"]["deployment"]
            return latest["status"] != "IN_PROGRESS" or latest["phase"] == "probation"

        wait_until(ended_or_on_trial, "probation, or the end", 60)
        latest = core.status()["state"]["deployment"]
        if latest["status"] != "IN_PROGRESS":
            break
    assert (latest["status"], latest["reason"]["code"]) == ("FAILED", "TOO_MANY_ATTEMPTS")
    assert version_in_use(site, "after") == "v1"


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_rollback_by_hand_needs_no_network(running: tuple[Site, Core, str]) -> None:
    site, core, _ = running
    with pytest.raises(AgentError) as caught:
        turn(core, "rollback")
    assert caught.value.code == "NOTHING_TO_ROLL_BACK"
    core.deploy(document("v2", put_model(site, 2, key="two.tar.gz")["uri"]))
    core.kill()
    site.cloud.stop()
    core.store_reachable = False
    core.start()
    core.wait_ready("scores")
    said = marram("rollback", "--wait", "--config", core.config, "--json")
    assert said.returncode == 0, said.stderr
    last = json.loads(said.stdout.splitlines()[-1])
    assert (last["status"], last["rollbackTo"]) == ("SUCCEEDED", "v1")
    assert core.status()["state"]["group"] == "v1"
    assert version_in_use(site, "after") == "v1"
    core.kill()
    core.start()
    core.wait_ready("scores")
    assert version_in_use(site, "again") == "v1"


def test_what_is_under_way_can_be_cancelled_and_in_probation_turned_back(running: tuple[Site, Core, str]) -> None:
    site, core, uri = running
    with pytest.raises(AgentError) as caught:
        turn(core, "cancel")
    assert caught.value.code == "NOTHING_TO_CANCEL"
    for id, command, code in (("v2", "cancel", "CANCELLED"), ("v3", "rollback", "ROLLED_BACK")):
        thread = seen_in_probation(core, document(id, uri, arn=FAULTY, Probation={"Seconds": 60}))
        said = marram(command, "--config", core.config)
        assert said.returncode == 0, said.stdout + said.stderr
        assert f"{id} FAILED turning back: {code}" in said.stdout
        thread.join()
        assert version_in_use(site, id) == "v1"
    assert core.status()["quarantine"] == []


def test_a_stopped_source_does_not_hold_a_deployment_that_is_cancelled(running: tuple[Site, Core, str]) -> None:
    _, core, uri = running
    core.deploy(document("v2", uri))
    core.kill()
    stopped = socket.create_server(("127.0.0.1", 0))  # connections are taken by the kernel, and nobody answers
    core.store_at = f"http://127.0.0.1:{stopped.getsockname()[1]}"
    with stopped:
        core.start()
        core.wait_ready("scores")
        body = json.dumps(document("v3", f"s3://{BUCKET}/other.tar.gz")).encode()
        *_, first = commands.deploy(commands.Place(core.config), body, wait=False, timeout_s=60)
        assert first["status"] == "IN_PROGRESS"
        with pytest.raises(AgentError) as caught:
            turn(core, "rollback")
        assert caught.value.code == "DEPLOYMENT_UNDER_WAY"
        assert turn(core, "cancel")["reason"]["code"] == "CANCELLED"
        assert core.status()["state"]["group"] == "v2"
