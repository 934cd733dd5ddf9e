"""A signed URL that expires in the middle of a job's fetch: the job is described again, and the fetch goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent.deployment.fresh_urls import FreshUrls
from agent.deployment.identity import identity_of
from agent.deployment.journal import Record
from agent.deployment.store import Store
from tests.agent_kit import Core
from tests.conftest import Site
from tests.jobs_emulator import JobsEmulator
from tests.mqtt_kit import wait_until
from tests.test_installer import Behaviour, certificate, told_server  # noqa: F401 - a fixture
from tests.test_jobs import DOCUMENT, THING, Bench, execution, listening
from tests.test_main_job import group, put_model

# -- asking the cloud --------------------------------------------------------------------------------------------------


def anew_of(bench: Bench) -> list[bytes | None]:
    return [action.document.body if action.document else None for action in bench.anew]


def test_a_document_is_asked_for_again_and_given_on() -> None:
    bench = Bench().started()
    bench.did(bench.jobs.ask_anew("job-1", bench.now_s))
    assert bench.last == "job-1/get"
    assert bench.asked[-1][1]["includeJobDocument"] is True
    bench.answers(execution=execution(jobDocument={**DOCUMENT, "Functions": []}))
    assert [json.loads(body)["DeploymentId"] for body in anew_of(bench) if body] == ["job-1"]
    assert bench.deployed == ["job-1"], "not deployed twice"
    assert bench.jobs.due_s is None


def test_an_answer_that_was_under_way_without_the_document_is_no_answer() -> None:
    bench = Bench().started()
    bench.jobs.link_down()
    bench.up()
    assert bench.asked[-1][1]["includeJobDocument"] is False
    bench.did(bench.jobs.ask_anew("job-1", bench.now_s))
    bench.answers(execution={"jobId": "job-1", "status": "IN_PROGRESS", "versionNumber": 2})
    assert anew_of(bench) == []
    assert bench.asked[-1][1]["includeJobDocument"] is True
    bench.answers(execution={"jobId": "job-1", "status": "IN_PROGRESS", "versionNumber": 2})
    assert anew_of(bench) == [None], "the cloud does not give it"
    assert bench.jobs.due_s is None


def test_after_a_restart_the_job_that_is_given_out_again_is_the_answer() -> None:
    bench = Bench()
    bench.did(bench.jobs.ask_anew("job-1", bench.now_s))
    bench.up().answers(execution=execution())
    assert len(anew_of(bench)) == 1


def test_a_job_that_is_over_has_no_document_any_more() -> None:
    bench = Bench().started()
    bench.did(bench.jobs.ask_anew("job-1", bench.now_s))
    bench.answers("rejected", code="TerminalStateReached")
    assert anew_of(bench) == [None]
    assert bench.cancelled


def test_nothing_is_asked_for_another_deployment() -> None:
    bench = Bench().started()
    before = len(bench.asked)
    bench.did(bench.jobs.ask_anew("sent-by-hand", bench.now_s))
    assert len(bench.asked) == before


# -- what is done with it ----------------------------------------------------------------------------------------------


def document(signature: int, path: str = "m.zip") -> bytes:
    url = f"https://models.example.org/{path}?X-Amz-Signature={signature}"
    container = {"HttpsMachineLearningModelResourceData": {"Url": url}}
    resource = {"Id": "m", "Name": "m", "ResourceDataContainer": container}
    return json.dumps({"DeploymentId": "d", "Resources": [resource]}).encode()


@pytest.fixture
def urls(tmp_path: Path) -> tuple[FreshUrls, list[bytes | None], Record]:
    """Fresh URLs, what the channel will give, and the record of a deployment."""
    answers: list[bytes | None] = []

    async def ask(id: str) -> tuple[bytes, bytes] | None:
        body = answers.pop(0)
        return (body, b"the same") if body else None

    digest, id = identity_of(document(1), b"the same")
    store = Store(tmp_path / "state")
    store.clean()
    store.journal.load()
    return FreshUrls(store, ask), answers, Record(id, digest)


def test_urls_are_replaced_as_long_as_they_bring_something(
    urls: tuple[FreshUrls, list[bytes | None], Record],
) -> None:
    fresh, answers, record = urls
    name = "https://models.example.org/m.zip"
    job: dict[str, Any] = {"archives": [{"id": "m", "role": "resource", "source": name, "url": "old", "known": None}]}

    def into() -> bool:
        return asyncio.run(fresh.into(job, record))

    answers[:] = [document(2), document(3), document(4), None]
    assert into()
    assert job["archives"][0]["url"] == f"{name}?X-Amz-Signature=2"
    assert not into(), "the last one brought nothing"
    fresh.heard({"event": "progress", "id": "m", "bytes": 1, "total": 2})
    fresh.heard({"event": "object", "source": name, "hex": "ab", "etag": '"v1"'})
    assert into()
    assert job["archives"][0]["known"] == ['"v1"', "ab"]
    fresh.begin()
    assert into(), "another deployment"
    fresh.heard({"event": "progress", "id": "m", "bytes": 1, "total": 2})
    assert not into(), "the channel does not give it"


def test_another_document_is_not_taken(urls: tuple[FreshUrls, list[bytes | None], Record]) -> None:
    fresh, answers, record = urls
    other = Record("d", identity_of(document(1), None)[0])
    answers.append(document(2, "other.zip"))
    assert not asyncio.run(fresh.into({"archives": []}, other))
    assert not asyncio.run(FreshUrls(fresh._store, None).into({"archives": []}, record))


# -- end to end --------------------------------------------------------------------------------------------------------


@dataclass
class Rollout:
    core: Core
    cloud: JobsEmulator
    server: Behaviour
    document: Any


@pytest.fixture
def rollout(site: Site, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rollout]:  # noqa: F811
    """A core that takes jobs, and a server with a model whose URL is signed anew whenever the job is given out."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    signatures = itertools.count(1)
    with told_server(certificate) as (port, server):
        core = listening(site.core(policy={"sources": [f"https://127.0.0.1:{port}/*"]}))
        model = put_model(site, 1)
        server.data = Path(model["archive"]).read_bytes()

        def document() -> dict[str, Any]:
            made = group("none", "s3://b/k", Probation={"Seconds": 0}) | {"Marram": {"Probation": {"Seconds": 0}}}
            url = f"https://127.0.0.1:{port}/m.tar.gz?X-Amz-Signature={next(signatures)}"
            made["Resources"][0]["ResourceDataContainer"] = {
                "HttpsMachineLearningModelResourceData": {"Url": url, "DestinationPath": "/ml/model"}
            }
            made["Functions"][0].pop("Marram", None)
            return {key: value for key, value in made.items() if key != "DeploymentId"}

        with JobsEmulator(site.cloud.port, THING) as cloud, core:
            core.wait_linked()
            yield Rollout(core, cloud, server, document)


def signature_of(seen: dict[str, str]) -> int:
    return int(parse_qs(urlsplit(seen["path"]).query)["X-Amz-Signature"][0])


def test_a_url_that_expires_in_the_middle_is_renewed_and_the_fetch_goes_on(rollout: Rollout) -> None:
    server = rollout.server
    server.cuts, server.statuses, server.refusal = [1000], [200, 403], "Request has expired"
    job = rollout.cloud.queue("signed-1", rollout.document)
    rollout.cloud.wait(job, "SUCCEEDED", "FAILED", "REJECTED")
    assert job.status == "SUCCEEDED", (job.details, rollout.core.tail())
    first, refused, last = server.seen
    assert signature_of(first) == signature_of(refused) < signature_of(last)
    assert last["Range"] == "bytes=1000-", "what was there was not fetched again"
    assert [each for each in job.statuses() if each == "SUCCEEDED"] == ["SUCCEEDED"]


def test_a_server_that_calls_every_url_expired_is_given_up(rollout: Rollout) -> None:
    rollout.server.statuses, rollout.server.refusal = [403] * 20, "Request has expired"
    job = rollout.cloud.queue("signed-2", rollout.document)
    rollout.cloud.wait(job, "SUCCEEDED", "FAILED", "REJECTED")
    assert (job.status, job.details["code"]) == ("FAILED", "SOURCE_EXPIRED")
    assert len(rollout.server.seen) == 2, "one fresh URL was tried"
    assert "X-Amz-Signature" not in rollout.core.tail(100_000)


def test_a_url_that_expired_while_the_agent_was_down_is_renewed_at_its_start(rollout: Rollout) -> None:
    server = rollout.server
    server.stall_at = 1000
    job = rollout.cloud.queue("signed-3", rollout.document)
    wait_until(lambda: server.seen, "the fetch has begun")
    rollout.core.kill()
    server.stall_at = None
    server.statuses, server.refusal = [403], "Request has expired"
    rollout.core.start()
    rollout.cloud.wait(job, "SUCCEEDED", "FAILED", "REJECTED")
    assert job.status == "SUCCEEDED", (job.details, rollout.core.tail())
    assert signature_of(server.seen[-1]) > signature_of(server.seen[0])
