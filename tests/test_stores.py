"""The same suite against two S3 servers that differ in what they get wrong: moto and rclone.

What each of them gets wrong stands here as a fact that is tested, so that it is understood; nothing that a device
relies on is left to a server.
"""

# ruff: noqa: F811 - fixtures are imported and then asked for by name

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from agent.deployment.definition import HttpsSource, S3Source
from agent.deployment.sources.https import has_expired
from agent.settings import FetchLimits
from tests.mqtt_kit import wait_until
from tests.rclone_kit import CuttingProxy, RcloneServer, TlsFront
from tests.s3_kit import S3Server, s3_server  # noqa: F401 - a fixture
from tests.test_faults import tar_gz
from tests.test_installer import Installers, archive, certificate, digest, installers  # noqa: F401 - fixtures

LIMITS = FetchLimits(attempts=3, backoff_s=0.05, sync_bytes=200_000)
ONE = tar_gz(("model.json", b"1", {}))
TWO = tar_gz(("model.json", b"2", {}), ("more.bin", random.Random(6).randbytes(300_000), {}))


@pytest.fixture(scope="module")
def rclone() -> Iterator[RcloneServer]:
    server = RcloneServer()
    yield server
    server.stop()


@pytest.fixture(params=["moto", "rclone"])
def store(request: pytest.FixtureRequest, installers: Installers) -> S3Server | RcloneServer:
    server: S3Server | RcloneServer = request.getfixturevalue("s3_server" if request.param == "moto" else "rclone")
    installers.environment(server.environment())
    return server


@pytest.fixture
def proxy(store: S3Server | RcloneServer, installers: Installers) -> Iterator[CuttingProxy]:
    made = CuttingProxy(store.port)
    installers.environment({**store.environment(), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{made.port}"})
    yield made
    made.close()


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_there_is_installed_and_then_known(store: S3Server | RcloneServer, installers: Installers) -> None:
    source = S3Source(store.put("stores", "dir/one.tar.gz", ONE))
    first = installers.run(source)
    assert first.objects == {"r0": hex_of(ONE)}
    assert set(first.known) == {source.name}
    installers.events.clear()
    assert installers.run(source).objects == first.objects
    assert [e for e in installers.events if e["event"] == "phase" and e["phase"] == "unpacking"] == []
    store.put("stores", "dir/one.tar.gz", TWO)
    assert installers.run(source).objects == {"r0": hex_of(TWO)}


def test_a_broken_connection_is_gone_on_from(
    store: S3Server | RcloneServer, proxy: CuttingProxy, installers: Installers
) -> None:
    proxy.cuts = [400_000, 300_000, 500, None]
    source = S3Source(store.put("stores", "cut.tar.gz", ONE))
    assert installers.run(source, limits=LIMITS).objects == {"r0": hex_of(ONE)}
    assert proxy.connections == 4


def test_an_installer_that_gave_up_is_gone_on_from(
    store: S3Server | RcloneServer, proxy: CuttingProxy, installers: Installers
) -> None:
    proxy.cuts = [700_000] + [0] * 3
    source = S3Source(store.put("stores", "later.tar.gz", ONE))
    assert installers.code(source, limits=LIMITS) == "SOURCE_UNREACHABLE"
    installers.events.clear()
    assert installers.run(source, limits=LIMITS).objects == {"r0": hex_of(ONE)}
    begun = next(event["bytes"] for event in installers.events if event["event"] == "progress")
    assert begun > 400_000, "it went on from what was there"


def test_what_is_replaced_on_the_way_is_never_mixed(
    store: S3Server | RcloneServer, proxy: CuttingProxy, installers: Installers
) -> None:
    source = S3Source(store.put("stores", "replaced.tar.gz", ONE))

    def replace_before_the_second(number: int) -> None:
        if number == 2:
            store.put("stores", "replaced.tar.gz", TWO)

    proxy.cuts, proxy.hook = [500_000], replace_before_the_second
    assert installers.run(source, limits=LIMITS).objects == {"r0": hex_of(TWO)}


def test_what_is_not_there(store: S3Server | RcloneServer, installers: Installers) -> None:
    store.put("stores", "one.tar.gz", ONE)
    assert installers.code(S3Source("s3://stores/none.tar.gz")) == "SOURCE_NOT_FOUND"
    assert installers.code(S3Source("s3://no-such-bucket/none.tar.gz")) == "SOURCE_NOT_FOUND"


def test_a_digest_that_no_server_compares(store: S3Server | RcloneServer, installers: Installers) -> None:
    source = S3Source(store.put("stores", "digest.zip", archive(1)))
    assert installers.code(source, promised=digest(b"")) == "MODEL_DIGEST_MISMATCH"
    assert installers.run(source, promised=digest(archive(1))).objects == {"r0": digest(archive(1))[7:]}


def test_the_length_is_capped(store: S3Server | RcloneServer, installers: Installers) -> None:
    source = S3Source(store.put("stores", "large.tar.gz", ONE))
    assert installers.code(source, limits=replace(LIMITS, max_bytes=1000)) == "SOURCE_TOO_LARGE"


# -- presigned URLs ----------------------------------------------------------------------------------------------------


def test_presigned_urls_and_their_end(
    store: S3Server | RcloneServer,
    installers: Installers,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over https; the core has no credentials. rclone refuses an expired one with 400, as AWS does with 403."""
    store.put("stores", "signed.tar.gz", ONE)
    front = TlsFront(store.port, certificate)
    given = store.environment()
    signing = boto3.client(
        "s3", endpoint_url=f"https://127.0.0.1:{front.port}", region_name="us-east-1",
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"], aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )  # fmt: skip

    def signed(seconds: int) -> HttpsSource:
        place = {"Bucket": "stores", "Key": "signed.tar.gz"}
        return HttpsSource(signing.generate_presigned_url("get_object", Params=place, ExpiresIn=seconds))

    installers.environment({})
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    source = signed(300)
    assert installers.run(source, limits=LIMITS).objects == {"r0": hex_of(ONE)}
    old = signed(1)
    wait_until(lambda: has_expired(old.url, time.time() - 1), "it has expired")
    if isinstance(store, RcloneServer):
        assert installers.code(old) == "SOURCE_EXPIRED"
        assert "Signature=" not in installers.said
    else:
        assert installers.run(old).objects == {"r0": hex_of(ONE)}, "moto gives what an expired one asks for"
    front.close()


# -- what each gets wrong ----------------------------------------------------------------------------------------------


def test_wrong_credentials(rclone: RcloneServer, s3_server: S3Server, installers: Installers) -> None:
    """rclone asks who we are; moto takes anybody."""
    source = S3Source(rclone.put("stores", "who.zip", archive(1)))
    installers.environment(rclone.environment(secret="wrong"))
    assert installers.code(source) == "SOURCE_CREDENTIALS"
    installers.environment(rclone.environment(key="wrong"))
    assert installers.code(source) == "SOURCE_CREDENTIALS"
    s3_server.put("stores", "who.zip", archive(1))
    installers.environment(s3_server.environment("wrong", "wrong"))
    assert installers.run(source).objects == {"r0": digest(archive(1))[7:]}


def ask(client: Any, **more: str) -> tuple[int, str | None]:
    """The status of a GetObject and its Content-Range."""
    try:
        answer = client.get_object(Bucket="stores", Key="quirks.zip", **more)
    except botocore.exceptions.ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], None
    answer["Body"].close()
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer.get("ContentRange")


def test_the_servers_differ_as_they_are_known_to(rclone: RcloneServer, s3_server: S3Server) -> None:
    """Where a new release of either changes, this says so; what is built on it is tested above."""
    data = archive(4)
    rclone.put("stores", "quirks.zip", data)
    s3_server.put("stores", "quirks.zip", data)
    whole = f"bytes 10-{len(data) - 1}/{len(data)}"
    assert ask(s3_server.client(), Range="bytes=10-") == (206, whole)
    assert ask(rclone.client(), Range="bytes=10-") == (200, whole), "200 for a range"
    assert ask(s3_server.client(), Range="bytes=10-", IfMatch='"other"')[0] == 412
    assert ask(rclone.client(), Range="bytes=10-", IfMatch='"other"')[0] == 200, "If-Match is ignored"
    etag = f'"{hashlib.md5(data).hexdigest()}"'
    assert ask(s3_server.client(), IfNoneMatch=etag)[0] == 304
    assert ask(rclone.client(), IfNoneMatch=etag)[0] in (200, 304)
