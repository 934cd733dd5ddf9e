"""Payloads on their way to a real S3: resumed, bounded, not lost by a crash; and a whole agent with a large input."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.capture import s3_objects
from agent.capture.parcels import Parcel, from_values, pack, to_values, victims
from agent.capture.samples import Reference, Sample, to_json
from agent.capture.uploads import Uploads
from agent.errors import AgentError
from agent.inference.requests import Origin
from agent.messages import BINARY, JSON
from tests.agent_kit import CORE, function, subscription
from tests.conftest import Site
from tests.mqtt_kit import wait_until
from tests.s3_kit import S3Server

BUCKET = "large-samples"
PLACE = f"s3://{BUCKET}/press"
DEADLINE_S = 60.0


def sample(n: int, size: int, value: float = 0.5, made: bytes = b"{}") -> Sample:
    data = hashlib.sha256(str(n).encode()).digest() * (size // 32 + 1)
    origin = Origin("f", "m", "sha256:00", "d1")
    return Sample(
        f"press-7-b-{n}-f",
        "random",
        value,
        origin,
        "t",
        "2026-11-23T06:07:08.000Z",
        (BINARY, data[:size]),
        (JSON, made),
    )


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, found by this process and its children."""
    s3_server.put(BUCKET, "here", b"")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@dataclass
class Desk:
    """Who takes what was uploaded."""

    published: list[Sample] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def publish(self, sample: Sample, done: Callable[[], None]) -> None:
        self.published.append(sample)
        done()

    def uploads(self, folder: Path, max_bytes: int = 1 << 30) -> Uploads:
        return Uploads(
            folder, PLACE, CORE, max_bytes, publish=self.publish, dropped=self.dropped.append
        )  # fmt: skip


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for happens in another process
        await asyncio.sleep(0.02)


def test_a_payload_is_in_the_bucket_before_its_sample_is_told_of(store: S3Server, tmp_path: Path) -> None:
    desk, large = Desk(), sample(1, 300_000)

    async def main() -> None:
        uploads = desk.uploads(tmp_path / "uploads")
        await uploads.open()
        stored = asyncio.Event()
        assert uploads.put(large, 10_000, stored.set)
        await stored.wait()
        await until(lambda: desk.published)
        assert uploads.told() == {"waiting": 0, "bytes": 0, "error": None}
        await until(lambda: not list((tmp_path / "uploads").iterdir()))
        await uploads.close()

    run(main)
    (told,) = desk.published
    assert isinstance(told.given, Reference)
    assert told.made == (JSON, b"{}")
    key = told.given.uri.removeprefix(f"s3://{BUCKET}/")
    assert key == "press/press-7/f/2026/11/23/press-7-b-1-f.input.bin"
    body = store.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert body == large.given[1]  # type: ignore[index]
    assert told.given.digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert told.given.size == 300_000
    assert len(to_json(told)) < 1000


def test_what_waits_outlives_the_agent_and_what_was_half_written_is_removed(store: S3Server, tmp_path: Path) -> None:
    folder, first, second = tmp_path / "uploads", Desk(), Desk()

    async def without_a_network() -> None:
        os.environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:1"
        uploads = first.uploads(folder)
        await uploads.open()
        for n in range(3):
            assert uploads.put(sample(n, 50_000), 10_000, lambda: None)
        await until(lambda: uploads.told()["error"])
        assert uploads.told()["error"].startswith("UPLOAD_UNREACHABLE")
        await until(lambda: uploads.told()["waiting"] == 3)
        await uploads.close()

    async def with_one() -> None:
        os.environ["AWS_ENDPOINT_URL_S3"] = store.endpoint
        uploads = second.uploads(folder)
        await uploads.open()
        await until(lambda: len(second.published) == 3)
        await until(lambda: not list(folder.iterdir()))
        await uploads.close()

    run(without_a_network)
    (folder / "0123.given").write_bytes(b"no word of it")
    (folder / "4567.json").write_bytes(b"{}")
    (folder / "89ab.json.new").write_bytes(b"{")
    run(with_one)
    assert sorted(each.id for each in second.published) == [f"press-7-b-{n}-f" for n in range(3)]
    assert first.published == []


def test_an_uploader_that_is_killed_is_replaced(store: S3Server, tmp_path: Path) -> None:
    desk = Desk()

    async def main() -> None:
        uploads = desk.uploads(tmp_path / "uploads")
        await uploads.open()
        assert uploads.put(sample(1, 50_000), 10_000, lambda: None)
        await until(lambda: len(desk.published) == 1)
        for pid in uploaders():
            os.kill(pid, signal.SIGKILL)
        assert uploads.put(sample(2, 50_000), 10_000, lambda: None)
        await until(lambda: len(desk.published) == 2)
        await uploads.close()
        assert uploaders() == []

    run(main)


def uploaders() -> list[int]:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"agent.capture.uploader" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_large_file_is_sent_in_parts_and_gone_on_with(store: S3Server, tmp_path: Path) -> None:
    file, key = tmp_path / "large", "press/large.bin"
    data = os.urandom(2 * s3_objects.PART_BYTES + 12_345)
    file.write_bytes(data)
    client = store.client()
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key, ContentType=BINARY)["UploadId"]
    part = data[: s3_objects.PART_BYTES]
    client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=part)
    note = file.with_name("large.upload")
    note.write_text(json.dumps({"Bucket": BUCKET, "Key": key, "UploadId": upload}))
    s3_objects.put(file, BUCKET, key, BINARY)
    sent = [path for method, path, _ in store.requests(key) if method == "PUT"]
    assert len(sent) == 3, "the first part was there already"
    found = client.get_object(Bucket=BUCKET, Key=key)
    assert (found["Body"].read(), found["ContentType"]) == (data, BINARY)
    assert not note.exists()
    note.write_text(json.dumps({"Bucket": BUCKET, "Key": key, "UploadId": upload}))
    s3_objects.put(file, BUCKET, key, BINARY)
    assert len([path for method, path, _ in store.requests(key) if method == "PUT"]) == 6, "an upload that is over"


def test_a_bucket_that_is_not_there_says_what_to_check(store: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"x")
    with pytest.raises(AgentError) as caught:
        s3_objects.put(file, "no-such-bucket-here", "key", BINARY)
    assert caught.value.code == "UPLOAD_REFUSED"
    assert "capture.s3" in caught.value.text


# -- room, pure -------------------------------------------------------------------------------------------------------


def parcel(n: int, size: int, value: float) -> Parcel:
    return pack(sample(n, size, value), PLACE, CORE, 1000)


def test_those_worth_least_go_for_one_that_is_worth_more() -> None:
    waiting = [parcel(n, 1000, value) for n, value in enumerate((0.5, 0.1, 0.9, 0.3))]
    assert victims(waiting, parcel(9, 1000, 0.6), 5000) == []
    assert victims(waiting, parcel(9, 1000, 0.6), 4000) == [waiting[1]]
    assert victims(waiting, parcel(9, 2000, 0.6), 4000) == [waiting[1], waiting[3]]
    assert victims(waiting, parcel(9, 2000, 0.2), 4000) is None, "one that is worth less does not push out 0.3"
    assert victims(waiting, parcel(9, 9000, 1.0), 4000) is None, "nor one that has no room at all"


def test_both_payloads_go_where_one_is_not_enough() -> None:
    one = pack(sample(1, 50_000), PLACE, CORE, 2000)
    assert set(one.references()) == {"given"}
    both = pack(sample(1, 50_000, made=b'"%s"' % base64.b64encode(b"x" * 30_000)), PLACE, CORE, 2000)
    assert set(both.references()) == {"given", "made"}
    assert from_values(json.loads(json.dumps(to_values(both)))) == Parcel(both.sample, {}, both.bytes)
    for broken in ({}, None, [], {**to_values(one), "given": None}, {**to_values(one), "made": {"type": "x"}}):
        assert from_values(broken) is None


def test_what_has_no_room_is_dropped_and_counted(store: S3Server, tmp_path: Path) -> None:
    desk = Desk()

    async def main() -> None:
        os.environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:1"
        uploads = desk.uploads(tmp_path / "uploads", 100_000)
        await uploads.open()
        assert uploads.put(sample(1, 60_000, 0.2), 1000, lambda: None)
        await until(lambda: uploads.told()["waiting"] == 1)
        await until(lambda: uploads.told()["error"])
        assert not uploads.put(sample(2, 60_000, 0.1), 1000, lambda: None)
        assert uploads.put(sample(3, 60_000, 0.9), 1000, lambda: None)
        await until(lambda: uploads.told() == {**uploads.told(), "waiting": 1, "bytes": 60_000})
        await uploads.close()

    run(main)
    assert desk.dropped == ["f"]


# -- a whole agent ----------------------------------------------------------------------------------------------------


def test_a_large_input_reaches_the_bucket_over_a_kill_and_its_sample_names_it(site: Site) -> None:
    site.s3.put(BUCKET, "here", b"")
    core = site.core(more={"capture": {"s3": PLACE, "max_bytes": "20 KiB"}})
    core.store_reachable = False
    picture = os.urandom(400_000)
    with site.observer() as cloud, site.device() as device:
        cloud.subscribe(f"marram/{CORE}/capture/#")
        with core:
            core.wait_linked()
            core.deploy(
                core.group(
                    "u1",
                    resources=[],
                    functions=[
                        function("echo", marram={"Capture": {"Strategy": "random", "Rate": 1}}, EncodingType="binary")
                    ],
                    subscriptions=[subscription("local", "camera/+", "function:echo")],
                )
            )
            device.publish("camera/1", picture)
            device.publish("camera/1", b"small")
            wait_until(lambda: core.status()["capture"]["uploads"]["waiting"] == 1, "the picture to be kept")
            wait_until(lambda: core.status()["capture"]["uploads"]["error"], "a try without a store", 60)
            core.kill()
            core.store_reachable = True
            core.start()
            samples = lambda: {s["id"]: s for m in list(cloud.received) if (s := json.loads(m.payload))}  # noqa: E731
            wait_until(lambda: len(samples()) == 2, "both samples", 90)
            wait_until(lambda: core.status()["capture"]["uploads"]["waiting"] == 0, "nothing to wait")
        found = {json.dumps(each["input"]): each for each in samples().values()}
        small = found.pop(json.dumps(base64.b64encode(b"small").decode()))
        assert small["input_type"] == BINARY
        ((large),) = found.values()
        assert large["input"]["digest"] == f"sha256:{hashlib.sha256(picture).hexdigest()}"
        assert large["input"]["size"] == len(picture)
        for part in (large["input"], large["output"]):
            key = part["s3"].removeprefix(f"s3://{BUCKET}/")
            assert site.s3.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == picture
