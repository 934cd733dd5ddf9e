"""Signed documents: what a core that trusts keys takes, and that it takes nothing else."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.cli import main as cli
from agent.deployment import proof, short_lived
from agent.deployment.admission import Admission
from agent.deployment.definition import NEW, Deployment, Function, S3Source
from agent.deployment.document import deployment_id_of, parse, read_accepted
from agent.deployment.envelope import MAX_SIGNATURES, PAYLOAD_TYPE, Envelope, Signature, UnprovenError, seal
from agent.deployment.fields import Problems
from agent.deployment.permissions import check_permitted
from agent.deployment.store import Store
from agent.errors import ConfigError, RejectedError, TransientError
from agent.settings import Link, Policy, Settings, Topics
from agent.trust import signing
from tests.agent_kit import CORE, resource
from tests.conftest import Site
from tests.mqtt_kit import wait_until
from tests.signing_kit import Signer, signer_here
from tests.test_deployer import Site as Bench
from tests.test_deployer import document as bare
from tests.test_deployer import run
from tests.test_main_job import group, put_model, statuses

DIGEST = "sha256:" + "0a" * 32
DOCUMENT: dict[str, Any] = {
    "DeploymentId": "d-7",
    "Marram": {"Sequence": 7, "Core": CORE},
    "Resources": [resource("s3://models/a.tar.gz", destination=None, Digest=DIGEST)],
}


class Gate:
    """The admission of a core that trusts two keys; the verifier's function runs in this process."""

    def __init__(self, directory: Path) -> None:
        self.cloud, self.spare = Signer(directory / "keys", "cloud"), Signer(directory / "keys", "spare")
        self.stranger = Signer(directory / "keys", "stranger")
        self.policy = Policy(sources=("s3://models/*",), trusted_keys=(self.cloud.trusted, self.spare.trusted))
        nowhere, topics = Link("local", "mqtt://127.0.0.1:1"), Topics("d", "s", "t", "c", "e")
        file, self._store = directory / "topics.yaml", Store(directory / "state")
        self._settings = Settings(file, CORE, directory / "state", (), nowhere, None, topics, (), self.policy)

    def take(self, body: bytes, *, floor: int | None = None, policy: Policy | None = None) -> Deployment:
        settings = replace(self._settings, policy=policy or self.policy)
        return Admission(self._store, settings, None, signer_here).check(body, retained=False, floor=floor)

    def refused(self, body: bytes, **more: Any) -> RejectedError:
        with pytest.raises(RejectedError) as caught:
            self.take(body, **more)
        return caught.value


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


def changed(**values: Any) -> dict[str, Any]:
    """DOCUMENT with other values; None leaves one out."""
    return {key: value for key, value in {**DOCUMENT, **values}.items() if value is not None}


@pytest.mark.parametrize("binary", [False, True])
def test_a_signed_document_is_taken_for_its_payload(gate: Gate, binary: bool) -> None:
    body = gate.cloud.sign(DOCUMENT, binary=binary)
    found = gate.take(body)
    assert (found.id, found.sequence, found.signed_by, found.warnings) == ("d-7", 7, gate.cloud.id, ())
    assert found.body_digest == read_accepted(json.dumps(DOCUMENT).encode()).body_digest
    assert read_accepted(body).resources == found.resources
    assert deployment_id_of(body) == "d-7"


def test_the_signature_is_over_what_dsse_says(gate: Gate) -> None:
    """The example of DSSE's protocol.md, and a signature made without our code."""
    example = Envelope(b"hello world", "http://example.com/HelloWorld", ())
    assert example.signed_bytes == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    payload = json.dumps(DOCUMENT).encode()
    by_hand = b"DSSEv1 38 application/vnd.marram.deployment+json " + str(len(payload)).encode() + b" " + payload
    signature = gate.cloud._key.sign(by_hand)
    urlsafe = base64.urlsafe_b64encode(signature).decode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "more": 1}
    assert gate.take(json.dumps({**envelope, "signatures": [{"sig": urlsafe, "more": 1}]}).encode()).id == "d-7"


def test_without_trusted_keys_nobody_checks_and_a_warning_says_so(gate: Gate) -> None:
    policy = replace(gate.policy, trusted_keys=())
    for signer in (gate.cloud, gate.stranger):
        found = gate.take(signer.sign(DOCUMENT), policy=policy)
        assert found.signed_by is None
        assert any("nobody checked" in warning for warning in found.warnings)
    assert gate.refused(gate.cloud.sign(changed(Marram=None)), policy=policy).code == "BAD_DOCUMENT"


def _unsigned(gate: Gate) -> bytes:
    return json.dumps(DOCUMENT).encode()


REFUSED: list[tuple[str, str, Callable[[Gate], bytes]]] = [
    ("UNSIGNED", "--sign KEY", _unsigned),
    ("UNSIGNED", "signed documents only", lambda gate: msgpack.packb(DOCUMENT)),
    ("SIGNATURE_INVALID", "policy.trusted_keys", lambda gate: gate.stranger.sign(DOCUMENT)),
    ("BAD_DOCUMENT", "payloadType", lambda gate: seal(gate.cloud.envelope(DOCUMENT, kind="application/json"))),
    ("BAD_DOCUMENT", "no JSON object", lambda gate: gate.cloud.sign(msgpack.packb(DOCUMENT))),
    ("BAD_DOCUMENT", "holds another one", lambda gate: gate.cloud.sign(gate.cloud.sign(DOCUMENT))),
    ("BAD_DOCUMENT", "signatures must be a list", lambda gate: seal(Envelope(b"{}", PAYLOAD_TYPE, ()))),
    ("BAD_DOCUMENT", "payload is missing", lambda gate: json.dumps({"signatures": [], "payloadType": ""}).encode()),
    ("BAD_DOCUMENT", "Marram.Sequence", lambda gate: gate.cloud.sign(changed(Marram={"Core": CORE}))),
    ("BAD_DOCUMENT", "Marram.Core", lambda gate: gate.cloud.sign(changed(Marram={"Sequence": 8}))),
    ("BAD_DOCUMENT", "Marram.Core", lambda gate: gate.cloud.sign(changed(Marram=None))),
    ("WRONG_CORE", "press-8", lambda gate: gate.cloud.sign(changed(Marram={"Sequence": 8, "Core": "press-8"}))),
    ("DIGEST_MISSING", "resource a ", lambda gate: gate.cloud.sign(changed(Resources=[_undigested("a")]))),
]


def _undigested(id: str) -> dict[str, Any]:
    return resource("s3://models/a.tar.gz", id=id, destination=None)


@pytest.mark.parametrize(("code", "words", "made"), REFUSED, ids=[f"{code}-{words}" for code, words, _ in REFUSED])
def test_what_is_refused(gate: Gate, code: str, words: str, made: Callable[[Gate], bytes]) -> None:
    error = gate.refused(made(gate))
    assert error.code == code
    assert words in error.text.replace(":", " ")


def test_a_sequence_is_taken_once(gate: Gate) -> None:
    body = gate.cloud.sign(DOCUMENT)
    assert gate.take(body, floor=6).sequence == 7
    for floor in (7, 8):
        assert gate.refused(body, floor=floor).code == "SEQUENCE_TOO_LOW"


def test_one_signature_that_is_trusted_is_enough(gate: Gate) -> None:
    by_stranger = gate.stranger.envelope(DOCUMENT)
    both = replace(by_stranger, signatures=(*by_stranger.signatures, gate.spare.signature(by_stranger)))
    assert gate.take(seal(both)).signed_by == gate.spare.id
    anonymous = replace(both, signatures=tuple(replace(each, key_id="") for each in both.signatures))
    assert gate.take(seal(anonymous)).signed_by == gate.spare.id
    # A key id is a hint: one that lies about a signature changes nothing, in either way.
    lying = replace(both, signatures=(replace(by_stranger.signatures[0], key_id=gate.cloud.id),))
    assert gate.refused(seal(lying)).code == "SIGNATURE_INVALID"
    many = replace(both, signatures=both.signatures * MAX_SIGNATURES)
    assert isinstance(gate.refused(seal(many)), UnprovenError)


def test_every_altered_byte_of_what_is_signed_is_refused(gate: Gate) -> None:
    right = gate.cloud.envelope(DOCUMENT)
    (signature,) = right.signatures
    for i in range(len(right.payload)):
        altered = bytearray(right.payload)
        altered[i] ^= 1
        assert isinstance(gate.refused(seal(replace(right, payload=bytes(altered)))), UnprovenError)
    for i in range(len(signature.value)):
        value = bytearray(signature.value)
        value[i] ^= 128
        one = replace(right, signatures=(Signature(signature.key_id, bytes(value)),))
        assert gate.refused(seal(one)).code == "SIGNATURE_INVALID"


@given(data=st.data())
@hypothesis_settings(max_examples=300, deadline=None)
def test_an_altered_envelope_is_refused_or_says_the_same(gate: Gate, data: st.DataObject) -> None:
    """Beside what is signed there are blanks, and the key's id, which nothing is decided by."""
    body = bytearray(gate.cloud.sign(DOCUMENT, binary=data.draw(st.booleans())))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    try:
        found = gate.take(bytes(body))
    except RejectedError:
        return
    assert found == gate.take(gate.cloud.sign(DOCUMENT))


TEXTS = st.one_of(
    st.text(max_size=20), st.binary(max_size=20), st.just(PAYLOAD_TYPE), st.none(), st.integers(-(2**63), 2**64 - 1)
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "payload": st.one_of(
            TEXTS,
            st.binary(max_size=200).map(lambda data: base64.b64encode(b"{" + data)),
            st.just(base64.b64encode(json.dumps(DOCUMENT).encode()).decode()),
        ),
        "payloadType": st.one_of(st.just(PAYLOAD_TYPE), TEXTS),
        "signatures": st.one_of(
            TEXTS,
            st.lists(
                st.one_of(TEXTS, st.fixed_dictionaries({}, optional={"keyid": TEXTS, "sig": TEXTS, "x": TEXTS})),
                max_size=3,
            ),
        ),
        "DeploymentId": TEXTS,
    },
)


@given(values=ENVELOPES, binary=st.booleans())
@hypothesis_settings(max_examples=400, deadline=None)
def test_whatever_an_envelope_holds_nothing_unproven_passes(gate: Gate, values: Any, binary: bool) -> None:
    body = msgpack.packb(values) if binary else json.dumps(values, default=lambda data: data.decode("latin-1")).encode()
    deployment_id_of(body)
    error = gate.refused(body)
    assert error.code in ("BAD_DOCUMENT", "UNSIGNED", "SIGNATURE_INVALID")
    try:
        gate.take(body, policy=replace(gate.policy, trusted_keys=()))
    except RejectedError:
        pass


@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_with_one_error_type(gate: Gate, body: bytes) -> None:
    gate.refused(body)
    gate.refused(gate.cloud.sign(body))


def test_parse_alone_never_takes_what_nobody_verified(gate: Gate) -> None:
    with pytest.raises(UnprovenError) as caught:
        parse(gate.cloud.sign(DOCUMENT), core=CORE, policy=gate.policy)
    assert caught.value.code == "UNSIGNED"


def test_code_from_a_source_needs_a_signature_or_the_policy_s_word() -> None:
    function = Function("f", "function:f", code=S3Source("s3://models/f.zip"))
    deployment = Deployment("d", NEW, None, "", functions=(function,))

    def found(policy: Policy, signed_by: str | None) -> list[str]:
        problems = Problems()
        check_permitted(deployment, policy, signed_by, problems)
        return [code for code, _ in problems.found]

    sources = ("s3://models/*",)
    assert found(Policy(sources), None) == ["NOT_ALLOWED"]
    assert found(Policy(sources), "0123") == []
    assert found(Policy(sources, allow_unsigned_code=True), None) == []


# -- the child --------------------------------------------------------------------------------------------------------


def test_the_child_gives_the_same_verdicts(gate: Gate) -> None:
    keys = [key.raw for key in gate.policy.trusted_keys]
    assert proof.signer_of(gate.cloud.envelope(DOCUMENT), keys) == gate.cloud.id
    with pytest.raises(UnprovenError) as caught:
        proof.signer_of(gate.stranger.envelope(DOCUMENT), keys)
    assert caught.value.code == "SIGNATURE_INVALID"
    assert gate.stranger.id in caught.value.message


def test_no_verdict_is_no_leave(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    envelope, keys = gate.cloud.envelope(DOCUMENT), [gate.cloud.trusted.raw]
    boots = (
        "",
        "raise SystemExit(1)",
        "print('{')",
        "print('[]')",
        f'print(\'{{"signer": "{gate.cloud.id}"}}\'); raise SystemExit(2)',
        "import os; os.kill(os.getpid(), 9)",
    )
    for boot in boots:
        monkeypatch.setattr(proof, "VERIFIER", boot)
        with pytest.raises(TransientError) as caught:
            proof.signer_of(envelope, keys)
        assert caught.value.code == "VERIFIER_LOST"
    monkeypatch.setattr(proof, "VERIFIER", "import signal; signal.pause()")
    with monkeypatch.context() as hurried:
        hurried.setattr(short_lived, "DEADLINE_S", 0.2)
        with pytest.raises(TransientError, match="within"):
            proof.signer_of(envelope, keys)
    monkeypatch.setattr(proof, "VERIFIER", 'print(\'{"signer": "somebody"}\')')
    with pytest.raises(UnprovenError):
        proof.signer_of(envelope, keys)


# -- through the deployer ---------------------------------------------------------------------------------------------


def signable(id: str, sequence: int, **more: Any) -> bytes:
    return bare(id, Marram={"Sequence": sequence, "Core": CORE}, **more)


def trusting(site: Bench, *signers: Signer) -> None:
    policy = replace(site.settings.policy, trusted_keys=tuple(each.trusted for each in signers))
    site.settings = replace(site.settings, policy=policy)


def test_signatures_do_not_make_another_document(tmp_path: Path) -> None:
    cloud, spare = Signer(tmp_path, "cloud"), Signer(tmp_path, "spare")

    async def body(site: Bench) -> None:
        trusting(site, cloud, spare)
        async with site.agent() as agent:
            payload = signable("d1", 1)
            await agent.send(cloud.sign(payload))
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")
            told = len(site.statuses)
            for again in (spare.sign(payload), cloud.sign(payload, binary=True), payload):
                await agent.send(again)
                assert agent.last("d1")["status"] == "SUCCEEDED"
            assert len(site.statuses) == told + 3
            await agent.send(cloud.sign(signable("d1", 2)))
            assert agent.last("d1")["reason"]["code"] == "ID_REUSED"

    run(tmp_path, body)


def test_nobody_can_use_up_an_id_that_is_not_theirs(tmp_path: Path) -> None:
    cloud, stranger = Signer(tmp_path, "cloud"), Signer(tmp_path, "stranger")

    async def body(site: Bench) -> None:
        trusting(site, cloud)
        async with site.agent() as agent:
            payload = signable("d1", 1)
            for wrong, code in (
                (payload, "UNSIGNED"),
                (bare("d1"), "UNSIGNED"),
                (stranger.sign(payload), "SIGNATURE_INVALID"),
                (stranger.sign(signable("d1", 9)), "SIGNATURE_INVALID"),
                (seal(cloud.envelope(payload, kind="text/plain")), "BAD_DOCUMENT"),
            ):
                await agent.send(wrong)
                last = site.statuses[-1]
                assert (last["status"], last["reason"]["code"]) == ("REJECTED", code)
            await agent.send(cloud.sign(payload))
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")
            assert agent.current() == "d1"

    run(tmp_path, body)


def test_a_lost_verifier_costs_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Signer(tmp_path)

    async def body(site: Bench) -> None:
        trusting(site, cloud)
        async with site.agent() as agent:
            with monkeypatch.context() as patch:
                patch.setattr(proof, "VERIFIER", "raise SystemExit(1)")
                await agent.send(cloud.sign(signable("d1", 1)))
                assert agent.last("d1")["reason"]["code"] == "VERIFIER_LOST"
            await agent.send(cloud.sign(signable("d1", 1)))
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")

    run(tmp_path, body)


def test_a_redeployment_asks_for_the_signature_of_what_runs(tmp_path: Path) -> None:
    cloud, next_cloud = Signer(tmp_path, "cloud"), Signer(tmp_path, "next")

    def again(id: str, sequence: int) -> bytes:
        marram = {"Sequence": sequence, "Core": CORE}
        return json.dumps({"DeploymentId": id, "DeploymentType": "Redeployment", "Marram": marram}).encode()

    async def body(site: Bench) -> None:
        trusting(site, cloud)
        async with site.agent() as agent:
            await agent.send(cloud.sign(signable("d1", 1)))
            await agent.until(lambda: agent.last("d1")["status"] == "SUCCEEDED")
        async with site.agent() as agent:  # the stored envelope is read at a start, and verified once more
            assert agent.recovered is not None
            assert agent.recovered.deployment.id == "d1"
            await agent.send(cloud.sign(again("d2", 2)))
            await agent.until(lambda: agent.last("d2")["status"] == "SUCCEEDED")
            await agent.send(cloud.sign(again("d3", 2)))
            assert agent.last("d3")["reason"]["code"] == "SEQUENCE_TOO_LOW"
        trusting(site, next_cloud)
        async with site.agent() as agent:  # what runs goes on, but nobody who is trusted now has signed it
            assert agent.recovered is not None
            await agent.send(next_cloud.sign(again("d4", 4)))
            reason = agent.last("d4")["reason"]
            assert reason["code"] == "SIGNATURE_INVALID"
            assert "the group that runs" in reason["message"]

    run(tmp_path, body)


def test_a_lost_journal_lets_no_old_document_in(tmp_path: Path) -> None:
    cloud = Signer(tmp_path)

    async def body(site: Bench) -> None:
        trusting(site, cloud)
        async with site.agent() as agent:
            for sequence in (4, 5):
                await agent.send(cloud.sign(signable(f"d{sequence}", sequence)))
                await agent.until(lambda: site.statuses[-1]["status"] == "SUCCEEDED")
        (site.state / "deployments" / "journal.json").write_text("{")
        async with site.agent() as agent:
            await agent.send(cloud.sign(signable("d4", 4)))
            assert agent.last("d4")["reason"]["code"] == "SEQUENCE_TOO_LOW"

    run(tmp_path, body)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keys_are_made_shown_and_never_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = os.umask(0)
    try:
        assert cli.main(["keys", "new", "cloud"]) == 0
    finally:
        os.umask(old)
    id = re.search(r"the key ([0-9a-f]{16});", capsys.readouterr().out)
    assert id is not None
    assert [(folder / name).stat().st_mode & 0o777 for name in ("cloud.key", "cloud.pub")] == [0o600, 0o644]
    for name, kind in (("cloud.key", "private"), ("cloud.pub", "public")):
        assert cli.main(["keys", "show", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"id": id[1], "kind": kind}
    before = (folder / "cloud.key").read_bytes()
    assert cli.main(["keys", "new", "cloud"]) == 78
    assert "KEY_EXISTS" in capsys.readouterr().err
    assert (folder / "cloud.key").read_bytes() == before


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("KEY_FILE_LOOSE", ["sign", "d.json", "--key", "loose.key", "--output", "out"]),
        ("KEY_FILE_LOOSE", ["keys", "show", "loose.key"]),
        ("KEY_FILE_LOOSE", ["deploy", "d.json", "--sign", "loose.key"]),
        ("KEY_UNREADABLE", ["sign", "d.json", "--key", "none.key", "--output", "out"]),
        ("KEY_INVALID", ["sign", "d.json", "--key", "text.key", "--output", "out"]),
        ("KEY_INVALID", ["keys", "show", "text.key"]),
        ("KEY_NAME", ["keys", "new", "../cloud"]),
        ("KEY_UNWRITABLE", ["keys", "new", "cloud", "--directory", "none"]),
        ("FILE_UNWRITABLE", ["sign", "d.json", "--key", "good.key", "--output", "none/out"]),
        ("BAD_DOCUMENT", ["sign", "bare.json", "--key", "good.key", "--output", "out"]),
        ("DIGEST_MISSING", ["sign", "loose.json", "--key", "good.key", "--output", "out"]),
    ],
)
def test_what_hinders_signing(
    folder: Path, capsys: pytest.CaptureFixture[str], code: str, arguments: list[str]
) -> None:
    for name in ("good", "loose"):
        Signer(folder, name)
    (folder / "loose.key").chmod(0o640)
    (folder / "text.key").write_text("no key")
    (folder / "text.key").chmod(0o600)
    (folder / "d.json").write_text(json.dumps(DOCUMENT))
    (folder / "bare.json").write_text('{"DeploymentId": "d"}')
    (folder / "loose.json").write_text(json.dumps(changed(Resources=[_undigested("m")])))
    assert cli.main(arguments) != 0
    assert f"marram: {code}: " in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_signed_file_is_signed_once_more(folder: Path, gate: Gate) -> None:
    (folder / "d.yaml").write_text(json.dumps(DOCUMENT))
    first, second = gate.stranger.pair.private, gate.cloud.pair.private
    assert cli.main(["sign", "d.yaml", "--key", str(first), "--output", "one.json"]) == 0
    assert gate.refused((folder / "one.json").read_bytes()).code == "SIGNATURE_INVALID"
    for _ in range(2):  # the same key's second signature takes the first one's place
        assert cli.main(["sign", "one.json", "--key", str(second), "--output", "two.msgpack"]) == 0
        (folder / "one.json").write_bytes((folder / "two.msgpack").read_bytes())
    assert len(msgpack.unpackb((folder / "two.msgpack").read_bytes())["signatures"]) == 2
    assert gate.take((folder / "two.msgpack").read_bytes()).signed_by == gate.cloud.id


def test_msgpack_is_signed_as_json(gate: Gate) -> None:
    made = signing.signed(msgpack.packb(DOCUMENT), gate.cloud.pair.private)
    assert gate.take(made).id == "d-7"
    with pytest.raises(RejectedError, match="written as JSON"):
        signing.signed(msgpack.packb({**DOCUMENT, "Loggers": [b"x"]}), gate.cloud.pair.private)
    with pytest.raises(ConfigError):
        signing.signed(msgpack.packb(DOCUMENT), gate.cloud.pair.public)


# -- the whole --------------------------------------------------------------------------------------------------------


def test_a_core_that_trusts_a_key_end_to_end(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Over a real broker: the signed document runs, also after a restart; what was sent by others never does."""
    cloud, stranger = Signer(site.directory / "keys"), Signer(site.directory / "keys", "stranger")
    made = put_model(site, 1)
    values = {**group("v1", made["uri"]), "Marram": {"Sequence": 1, "Core": CORE}}
    values["Resources"][0]["Marram"] = {"Digest": made["digest"]}
    file = site.directory / "v1.json"
    file.write_text(json.dumps(values))
    core = site.core(policy={"trusted_keys": [str(cloud.pair.public)]})

    def deploy(*arguments: str) -> tuple[int, str]:
        code = cli.main(["deploy", str(file), "--wait", "--config", str(core.config), *arguments])
        return code, capsys.readouterr().out

    with core, site.observer() as observer:
        observer.subscribe("marram/#")
        core.wait_linked()
        assert deploy()[0] == 1
        assert deploy("--sign", str(stranger.pair.private))[0] == 1
        observer.publish(f"marram/{CORE}/deployments", stranger.sign(values))
        observer.publish(f"marram/{CORE}/deployments", json.dumps(values))
        rejected = lambda: [s["reason"]["code"] for s in statuses(observer, "v1")]  # noqa: E731
        wait_until(lambda: len(rejected()) == 4, "four refusals")
        assert sorted(rejected()) == ["SIGNATURE_INVALID", "SIGNATURE_INVALID", "UNSIGNED", "UNSIGNED"]
        over_the_cloud = ["--broker", site.cloud.url, "--core", CORE, "--sign", str(cloud.pair.private)]
        assert deploy(*over_the_cloud)[0] == 0
        core.wait_ready("scores")
        core.stop()
        core.start()
        core.wait_ready("scores")
        code, said = deploy("--sign", str(cloud.pair.private))  # the same document: its status again
        assert (code, "v1 SUCCEEDED" in said) == (0, True)
        values["DeploymentId"] = "v2"
        file.write_text(json.dumps(values))
        assert "SEQUENCE_TOO_LOW" in deploy("--sign", str(cloud.pair.private))[1]
        assert core.process is not None
        assert "cryptography" not in Path(f"/proc/{core.process.pid}/maps").read_text()
