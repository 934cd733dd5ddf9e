"""A campaign of deployments, every other one bad in a way of its own, while a device keeps asking.

Ten in a usual run, a hundred with --soak. Each request is answered once, by a version that was live, and with what that
version makes of it; after each bad one runs what ran before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.agent_kit import BUCKET, Core, by_hand, layers
from tests.conftest import Site
from tests.load_kit import Load
from tests.test_main_job import put_model
from tests.test_promises import figure
from tests.test_trial import FAULTY, document, golden, put_sick_model

Bad = Callable[[str, dict[str, Any]], tuple[dict[str, Any], str]]


def event(n: int) -> dict[str, Any]:
    return {"x": [(n % 97) / 97 + i / 16 for i in range(16)]}


def bad_ways(site: Site) -> list[Bad]:
    """Each gives, for an id and a whole new model, a document that fails, and the code that it fails with."""
    broken = site.s3.put(BUCKET, "broken.tar.gz", Path(put_model(site, 900)["archive"]).read_bytes()[:-300])
    sick = put_sick_model(site, "sick.tar.gz")
    retry = {"RetryQuarantined": True}
    finite = {"HealthCheck": {"Requests": [{"Inputs": {"data": [event(0)["x"]]}}]}}
    slow = {"Requests": 20, "MaxLatencyMs": 20}
    return [
        lambda id, made: (document(id, broken), "ARCHIVE_BROKEN"),
        lambda id, made: (document(id, made["uri"], model={"Digest": "sha256:" + "0" * 64}), "MODEL_DIGEST_MISMATCH"),
        lambda id, made: (document(id, f"s3://{BUCKET}/nowhere.tar.gz"), "SOURCE_NOT_FOUND"),
        lambda id, made: (document(id, made["uri"], model={"HealthCheck": golden(901)}), "HEALTH_CHECK_FAILED"),
        lambda id, made: (document(id, sick, model=finite, **retry), "HEALTH_CHECK_FAILED"),
        lambda id, made: (document(id, made["uri"], arn=FAULTY, mode="slow", Probation=slow), "PROBATION_SLOW"),
        lambda id, made: (document(id, made["uri"], model={"Runtime": "dlr"}), "MODEL_LOAD_FAILED"),
    ]


def test_a_campaign_of_good_and_bad_deployments_loses_no_request(site: Site, soak: bool, record_property: Any) -> None:
    deployments = 100 if soak else 10
    made = [put_model(site, seed, key=f"m{seed}.tar.gz") for seed in range(deployments + 1)]
    seeds = {each["digest"]: seed for seed, each in enumerate(made)}
    bad = bad_ways(site)
    codes: list[str] = []
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(document("d0", made[0]["uri"]))
        load = Load(device, "sensors/a/x", event, rate=200)
        troubles: list[BaseException] = []
        done = threading.Event()

        def deploy_all() -> None:
            try:
                for number in range(1, deployments + 1):
                    if number % 2:
                        core.deploy(document(f"d{number}", made[number]["uri"]))
                    else:
                        wanted, code = bad[number // 2 % len(bad)](f"d{number}", made[number])
                        codes.append(assert_fails(core, wanted, code))
            except BaseException as error:
                troubles.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=deploy_all)
        thread.start()
        while not done.is_set():
            load.run(100)
        thread.join()
        assert not troubles, troubles
        assert core.status()["state"]["group"] == f"d{deployments - 1}"
    versions = assert_answered(load, seeds)
    assert len(versions) > deployments // 2
    figure(
        record_property,
        deployments=deployments,
        of_these_bad=len(codes),
        codes=sorted(set(codes)),
        requests=load.count,
        lost=0,
        answered_twice=0,
    )


def assert_fails(core: Core, wanted: dict[str, Any], code: str) -> str:
    """Deploys it, and holds that it failed so, and that the group of before runs."""
    before = core.status()["state"]["group"]
    reason = core.deploy(wanted, expect="FAILED")["reason"]
    assert reason["code"] == code, reason
    assert core.status()["state"]["group"] == before
    return code


def assert_answered(load: Load, seeds: dict[str, int]) -> set[str]:
    """Holds that each request has one answer, equal to its version's by hand; returns the versions that answered."""
    assert len(load.answers) == load.count
    for name, got in load.answers.items():
        assert len(got) == 1, f"{name} was answered {len(got)} times"
        assert "error" not in got[0], got[0]
        x = event(int(name.rpartition("-")[2]))["x"]
        np.testing.assert_allclose(got[0]["scores"], by_hand(layers(seeds[got[0]["meta"]["version"]]), x), atol=1e-5)
    return {got[0]["meta"]["version"] for got in load.answers.values()}
