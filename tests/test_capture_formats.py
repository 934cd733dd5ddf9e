"""Samples as messages and back, and as the files that training reads; the command against a real agent."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import formats
from agent.capture.export import read_files, write
from agent.capture.received import REFERENCE, Received, parse
from agent.capture.samples import Reference, Sample, size, to_json, to_msgpack
from agent.errors import RejectedError
from agent.inference.requests import Origin
from agent.messages import BINARY, JSON, MSGPACK
from tests.agent_kit import function, model_archive, resource, subscription
from tests.conftest import Site
from tests.mqtt_kit import wait_until
from tests.source_kit import ROOT

ORIGIN = Origin("activity", "model", "sha256:00", "2026-11-23-a")


def sample(id: str = "press-7-1-activity", **more: Any) -> Sample:
    values: dict[str, Any] = {
        "given": (JSON, b'{"x": [1, 2.5], "name": "\xc3\xa9"}'),
        "made": (JSON, b'{"scores": [0.5, 0.5]}'),
        "timestamp": "2026-11-23T06:07:08.123Z",
    }
    return Sample(id=id, reason="entropy", value=0.75, origin=ORIGIN, topic="sensors/a", **{**values, **more})


PARTS = [
    (JSON, b'{"x": 1}'),
    (BINARY, b"\x00\xff" * 100),
    (MSGPACK, msgpack.packb({"shape": [2], "dtype": "float32", "data": b"\x00" * 8})),
    ("image/jpeg", b"\xff\xd8\xff"),
    Reference("image/jpeg", "s3://bucket/key.bin", "sha256:11", 5_000_000),
]


@pytest.mark.parametrize("given_", PARTS)
@pytest.mark.parametrize("made", [*PARTS, None])
@pytest.mark.parametrize("encode", [to_json, to_msgpack])
def test_a_sample_is_read_back_as_it_was(given_: Any, made: Any, encode: Any) -> None:
    found = parse(encode(sample(given=given_, made=made)))
    assert found.head == {
        "id": "press-7-1-activity", "reason": "entropy", "value": 0.75, "function": "activity", "model": "model",
        "version": "sha256:00", "deployment": "2026-11-23-a", "topic": "sensors/a",
        "timestamp": "2026-11-23T06:07:08.123Z",
    }  # fmt: skip
    for part, was in ((found.given, given_), (found.made, made)):
        if was is None:
            assert part is None
        elif isinstance(was, Reference):
            expected = {"s3": was.uri, "digest": was.digest, "size": was.size, "type": was.type}
            assert part is not None
            assert (part.type, json.loads(part.data)) == (REFERENCE, expected)
        else:
            assert part is not None
            same = json.loads(part.data) == json.loads(was[1]) if was[0] == JSON else part.data == was[1]
            assert part.type == was[0]
            assert same


@pytest.mark.parametrize("given_", PARTS)
@pytest.mark.parametrize("made", [*PARTS, None])
def test_the_size_is_known_before_anything_is_encoded(given_: Any, made: Any) -> None:
    found = sample(given=given_, made=made)
    assert size(found) == len(to_json(found))


@given(
    st.binary(max_size=200) | st.dictionaries(st.text(max_size=5), st.integers()).map(lambda d: json.dumps(d).encode())
)
@settings(max_examples=100)
def test_whatever_comes_is_a_sample_or_refused(body: bytes) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(body)
    assert caught.value.code == "NOT_A_SAMPLE"


def received(count: int, **more: Any) -> list[Received]:
    return [parse(to_json(sample(f"press-7-{n}-activity", **more))) for n in range(count)]


def test_sagemaker_finds_one_object_a_line_by_function_model_and_hour() -> None:
    ((name, body),) = formats.files("sagemaker", received(3, made=None, given=(BINARY, b"\x01")))
    assert name.startswith("activity/model/2026/11/23/06/07-08-")
    first, *rest = [json.loads(line) for line in body.splitlines()]
    assert len(rest) == 2
    assert first == {
        "captureData": {"endpointInput": {"observedContentType": BINARY, "mode": "INPUT", "data": "AQ==",
                                          "encoding": "BASE64"}},
        "eventMetadata": {"eventId": "press-7-0-activity", "inferenceTime": "2026-11-23T06:07:08Z",
                          "customAttributes": ["reason=entropy", "value=0.75", "topic=sensors/a", "version=sha256:00",
                                               "deployment=2026-11-23-a"]},
        "eventVersion": "0",
    }  # fmt: skip
    ((_, body),) = formats.files("sagemaker", received(1))
    data = json.loads(body)["captureData"]
    assert data["endpointOutput"]["encoding"] == "JSON"
    assert json.loads(data["endpointOutput"]["data"]) == {"scores": [0.5, 0.5]}


def test_webdataset_shards_hold_the_parts_of_a_sample_side_by_side() -> None:
    found = dict(formats.files("webdataset", received(formats.SHARD_SAMPLES + 2)))
    assert len(found) == 2
    counts = []
    for body in found.values():
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            names = tar.getnames()
            keys = [name.partition(".")[0] for name in names]
            assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)], "a sample's files are neighbours"
            assert [name.partition(".")[2] for name in names[:3]] == ["json", "input.json", "output.json"]
            head = tar.extractfile(names[0])
            assert head is not None
            assert json.load(head)["reason"] == "entropy"
        counts.append(len(set(keys)))
    assert sorted(counts) == [2, formats.SHARD_SAMPLES]


@pytest.mark.parametrize("format", ["sagemaker", "webdataset"])
def test_the_same_samples_give_the_same_files(format: str) -> None:
    assert list(formats.files(format, received(5))) == list(formats.files(format, received(5)))


def test_doubles_are_written_once_and_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    file, packed = tmp_path / "seen.jsonl", tmp_path / "one.msgpack"
    first, second = (to_json(sample(f"s{n}")) for n in range(2))
    file.write_bytes(b"\n".join([first, b"marram/c/capture/f " + second, first, b"{}", b"noise"]))
    packed.write_bytes(to_msgpack(sample("s2")))
    done = write(tmp_path / "out", "webdataset", read_files([file, packed]))
    assert (done.samples, done.doubles, done.unreadable) == (3, 1, 1)
    (name,) = done.files
    assert (tmp_path / "out" / name).is_file()


def test_the_consumer_writes_each_sample_once_and_loses_none(site: Site, tmp_path: Path) -> None:
    """Killed without a word in the middle, and sent doubles."""
    bucket = "consumed-samples"
    site.s3.put(bucket, "here", b"")
    command = [sys.executable, str(ROOT / "examples" / "samples_to_s3.py"), "--broker", site.cloud.url, "--to",
               f"s3://{bucket}/a", "--batch", "7", "--seconds", "0.5", "--seen", str(tmp_path / "seen.db")]  # fmt: skip
    environment = {**os.environ, **site.s3.environment(), "PYTHONPATH": str(ROOT)}

    def stored() -> list[str]:
        ids = []
        listed = site.s3.client().list_objects_v2(Bucket=bucket, Prefix="a/").get("Contents", ())
        for each in listed:
            body = site.s3.client().get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                heads = [tar.extractfile(name) for name in tar.getnames() if name.count(".") == 1]
                ids += [json.load(head)["id"] for head in heads if head is not None]
        return ids

    def consumer() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def publish(first: int, last: int) -> None:
        for n in range(first, last):
            cloud.publish("marram/press-7/capture/activity", to_json(sample(f"s{n}")))

    with site.observer("sender") as cloud:
        running = consumer()
        try:
            wait_until(lambda: (tmp_path / "seen.db").exists(), "the consumer's file")
            probes = iter(range(10_000))

            def heard() -> bool:
                """A probe has arrived: it is subscribed."""
                cloud.publish("marram/press-7/capture/activity", to_json(sample(f"probe-{next(probes)}")))
                return any(id.startswith("probe") for id in stored())

            wait_until(heard, "the consumer's subscription", 60)
            publish(0, 20)
            wait_until(lambda: "s3" in stored(), "the first shard", 60)
            running.kill()
            running.wait(10)
            publish(10, 40)
            running = consumer()
            wait_until(lambda: {f"s{n}" for n in range(40)} <= set(stored()), "all samples in the bucket", 60)
            running.terminate()
            assert running.wait(20) == 0
        finally:
            running.kill()
    ids = [id for id in stored() if id.startswith("s")]
    assert len(ids) - len(set(ids)) <= 7, (
        "only what was written and not yet noted when it was killed may be there twice"
    )


def marram(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_a_broker_hands_out_is_exported(site: Site, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "capture", "export", str(tmp_path / "out"), "--broker", site.cloud.url,
               "--core", "press-7", "--seconds", "3", "--json"]  # fmt: skip
    with site.observer("sender") as cloud, subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        while running.poll() is None:  # the same sample, as nobody says when the command is subscribed
            cloud.publish("marram/press-7/capture/activity", to_msgpack(sample("s1")))
        assert running.stdout is not None
        told = json.loads(running.stdout.read())
    assert (running.returncode, told["samples"], len(told["files"])) == (0, 1, 1)


def test_what_waits_on_a_core_is_listed_and_exported_and_stays(site: Site, tmp_path: Path) -> None:
    made = model_archive(site.directory, 1)
    uri = site.s3.put("factory-models", "captured.tar.gz", Path(made["archive"]).read_bytes())
    capture = {"Any": [{"Strategy": "random", "Rate": 1}, {"Strategy": "rule", "When": "event.odd"}]}
    site.cloud.stop()
    with site.core() as core, site.device() as device:
        core.deploy(
            core.group(
                "c1",
                resources=[resource(uri)],
                functions=[function("scores", models=("model",), marram={"Capture": capture})],
                subscriptions=[subscription("local", "sensors/+/x", "function:scores")],
            )
        )
        for n in range(20):
            device.publish("sensors/a/x", json.dumps({"x": [0.1 * n] * 16, "odd": n == 7}))
        wait_until(lambda: core.status()["spool"]["backlog"].get("cloud", {}).get("capture", {}).get("count") == 20)
        counts = core.status()["capture"]["functions"]["scores"]
        assert (counts["seen"], counts["kept"]) == (20, {"random": 19, "random+rule": 1})
        listed = marram("capture", "ls", "--config", core.config)
        assert "scores  random: 19 samples" in listed.stdout, listed.stderr
        assert "scores  random+rule: 1 samples" in listed.stdout
        for format in ("webdataset", "sagemaker"):
            done = marram("capture", "export", tmp_path / format, "--format", format, "--json", "--config", core.config)
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["samples"] == 20
        assert core.status()["spool"]["backlog"]["cloud"]["capture"]["count"] == 20
        with tarfile.open(next((tmp_path / "webdataset").glob("*.tar"))) as tar:
            inputs = [json.load(tar.extractfile(name)) for name in tar.getnames() if ".input." in name]  # type: ignore[arg-type]
        assert sorted(each["x"][0] for each in inputs) == pytest.approx([0.1 * n for n in range(20)])
        again = marram("capture", "export", "/proc/no", "--config", core.config)
        assert again.returncode != 0
        assert "EXPORT_UNWRITABLE" in again.stderr
        site.cloud.start()
        wait_until(lambda: not core.status()["spool"]["backlog"], "the samples in the cloud", 90)
        assert "no sample waits" in marram("capture", "ls", "--config", core.config).stdout
