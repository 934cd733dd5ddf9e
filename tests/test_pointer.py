"""Pointers to documents: fetched, compared and then taken as if the document had come itself."""

# ruff: noqa: F811 - fixtures are imported and then asked for by name

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.pointer import pointer_of
from agent.errors import RejectedError
from agent.settings import Policy
from tests.s3_kit import S3Server, s3_server  # noqa: F401 - a fixture
from tests.test_deployer import DEADLINE_S, Site, Stick, archive, code, document, run, s3, stick, store_environment  # noqa: F401


def pointer(id: str, url: str, body: bytes, **more: Any) -> bytes:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return json.dumps({"DeploymentId": id, "DocumentUrl": url, "Digest": digest, **more}).encode()


def test_a_pointer_leads_to_its_document(tmp_path: Path, s3: S3Server, stick: Stick) -> None:
    body = document("d1", stick.put("deploy-a", "m.tar.gz", archive(1)))
    url = s3.put("deploy-docs", "d1.json", body)

    async def main(site: Site) -> None:
        async with site.agent() as agent:
            assert (await agent.deploy(pointer("d1", url, body)))["status"] == "SUCCEEDED"
            told = list(agent.workers.told)
            again = await agent.deploy(body)  # the document itself is the same
            assert (again["status"], agent.workers.told) == ("SUCCEEDED", told)

    run(tmp_path, main)


def refusals(good: bytes, url: str) -> dict[str, tuple[bytes, str]]:
    return {
        "digest": (pointer("p", url, b"other"), "DOCUMENT_DIGEST_MISMATCH"),
        "id": (pointer("q", url, good), "BAD_DOCUMENT"),
        "place": (pointer("p", "s3://elsewhere/p.json", good), "NOT_ALLOWED"),
        "missing": (pointer("p", url + "x", good), "SOURCE_NOT_FOUND"),
        "no digest": (json.dumps({"DeploymentId": "p", "DocumentUrl": url}).encode(), "BAD_DOCUMENT"),
        "more": (pointer("p", url, good, Resources=[]), "BAD_DOCUMENT"),
    }


def test_a_pointer_that_leads_nowhere_leaves_no_trace(tmp_path: Path, s3: S3Server) -> None:
    good = document("p")
    url = s3.put("deploy-docs", "p.json", good)
    away = json.dumps({"DeploymentId": "p", "DocumentUrl": url, "Digest": f"sha256:{'0' * 64}"}).encode()
    twice = s3.put("deploy-docs", "twice.json", away)

    async def main(site: Site) -> None:
        async with site.agent() as agent:
            for what, (body, expected) in {
                **refusals(good, url),
                "twice": (pointer("p", twice, away), "BAD_DOCUMENT"),
            }.items():
                assert code(await agent.deploy(body)) == ("REJECTED", expected), what
            assert (await agent.deploy(pointer("p", url, good)))["status"] == "SUCCEEDED"

    run(tmp_path, main)


def test_what_is_newer_is_not_superseded_by_what_took_longer(
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agent.deployment import pointer as module

    old = document("old")
    url = s3.put("deploy-docs", "old.json", old)
    held = asyncio.Event()
    fetch: Callable[..., Any] = module.fetch_document

    async def slow(*args: Any) -> bytes:
        await held.wait()
        found: bytes = await fetch(*args)
        return found

    monkeypatch.setattr(module, "fetch_document", slow)

    async def main(site: Site) -> None:
        async with site.agent() as agent:
            agent.deployer.receive(pointer("old", url, old), retained=False, accepted=lambda: None)
            assert (await agent.deploy(document("new")))["status"] == "SUCCEEDED"
            held.set()
            await agent.until(lambda: any(s["deploymentId"] == "old" for s in site.statuses))
            assert code(agent.last("old")) == ("REJECTED", "SUPERSEDED")
            assert agent.current() == "new"

    run(tmp_path, main)


def test_an_agent_that_ends_while_it_fetches_has_acknowledged_nothing(
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agent.deployment import pointer as module

    async def never(*args: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(module, "fetch_document", never)
    acknowledged: list[None] = []

    async def main(site: Site) -> None:
        async with site.agent() as agent:
            body = pointer("d", "s3://deploy-docs/d.json", b"x")
            agent.deployer.receive(body, retained=False, accepted=lambda: acknowledged.append(None))
            await asyncio.sleep(0)
        assert acknowledged == []

    asyncio.run(asyncio.wait_for(_on_a_site(tmp_path, main), DEADLINE_S))


async def _on_a_site(tmp_path: Path, body: Callable[[Site], Any]) -> None:
    await body(Site(tmp_path))


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b'{"DeploymentId": "d"}', b"\xc1", document("d")])
def test_what_is_no_pointer(body: bytes) -> None:
    assert pointer_of(body) is None


def test_a_bucket_with_a_dot_is_no_way_round(tmp_path: Path, s3: S3Server) -> None:
    async def main(site: Site) -> None:
        site.settings = replace(site.settings, policy=Policy(sources=("*",)))
        async with site.agent() as agent:
            status = await agent.deploy(pointer("d", "s3://with.dot/d.json", b"x"))
            assert code(status) == ("REJECTED", "NOT_ALLOWED")

    run(tmp_path, main)
    with pytest.raises(RejectedError):
        pointer_of(pointer("d", "http://x/y", b""))
