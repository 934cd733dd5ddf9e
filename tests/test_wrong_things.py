"""The error tour: whatever a user does wrong with the commands is told in one clear error, with a code and a remedy.

Every case runs the real command as a child. One core serves them all, so that the tour stays short.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.archive import pack
from tests.agent_kit import BUCKET, CORE, Core, function, model_archive, resource, subscription
from tests.mqtt_kit import Mosquitto, free_port
from tests.s3_kit import S3Server
from tests.source_kit import ROOT

CODE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*(?=:)")
EX_CONFIG = 78
SETUP_REQUESTS = 9  # what is asked of the store before it begins to look at credentials


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


def marram(*arguments: object, environment: Mapping[str, str] | None = None, stdin: bytes = b"") -> Said:
    """Runs the command. It never shows a traceback, whatever it is told."""
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        input=stdin, capture_output=True, timeout=60, cwd=ROOT, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    said = Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
    assert "Traceback" not in said.all, said.all
    return said


def refused(code: str, remedy: str, *arguments: object, exit_code: int = 1, **more: Any) -> Said:
    """Runs a command that must fail: `code` and `remedy` are what its error must hold."""
    said = marram(*arguments, **more)
    assert said.code == exit_code, said.all
    assert code in CODE.findall(said.all), said.all
    assert remedy in said.all, said.all
    return said


@dataclass
class Tour:
    """One running core, the files that a user would have, and what a device would know."""

    directory: Path
    broker: Mosquitto
    s3: S3Server
    core: Core
    model: dict[str, Any]

    def write(self, name: str, content: object) -> Path:
        file = self.directory / name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file

    def document(self, id: str, uri: str | None = None, *, code: str = "echo", **marram: Any) -> dict[str, Any]:
        return {
            "DeploymentId": id,
            "Resources": [resource(uri or f"s3://{BUCKET}/model.tar.gz", **marram)],
            "Functions": [function(code, models=("model",)), function("moody")],
            "Subscriptions": [subscription("local", "sensors/x", f"function:{code}")],
        }

    def deploy(self, document: dict[str, Any], code: str, remedy: str, *, core: Core | None = None) -> Said:
        file = self.write(f"{document['DeploymentId']}.json", document)
        return refused(code, remedy, "deploy", file, "--wait", "--config", (core or self.core).config)


@dataclass(frozen=True)
class Credentials:
    """What a core finds in its environment to reach the store."""

    store: S3Server
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        return self.store.environment(self.key, self.secret)


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    """A store that looks at credentials: those of `allowed` may read the bucket, all others nothing."""
    server = S3Server(authenticate=SETUP_REQUESTS)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory, store: S3Server) -> Iterator[Tour]:
    directory = tmp_path_factory.mktemp("tour")
    made = model_archive(directory, 1)
    store.put(BUCKET, "model.tar.gz", Path(made["archive"]).read_bytes())
    store.put(BUCKET, "junk.tar.gz", b"this is no archive at all\n" * 40)
    store.put(BUCKET, "cut.tar.gz", Path(made["archive"]).read_bytes()[:-64])
    store.put(BUCKET, "secret.tar.gz", b"nobody reads this")
    (directory / "text").mkdir()
    (directory / "text" / "read.me").write_text("no model")
    packed = pack(directory / "text", directory / "text.tar.gz")
    store.put(BUCKET, "text.tar.gz", Path(packed["archive"]).read_bytes())
    iam = store.client("iam")
    iam.create_user(UserName="core")
    key = iam.create_access_key(UserName="core")["AccessKey"]
    rights = [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/secret.tar.gz"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": rights})
    iam.put_user_policy(UserName="core", PolicyName="reads", PolicyDocument=policy)
    broker = Mosquitto(directory / "broker")
    with broker:
        credentials: Any = Credentials(store, key["AccessKeyId"], key["SecretAccessKey"])
        sources = {"sources": [f"s3://{BUCKET}/*", "s3://no-such-bucket/*"]}
        with Core(directory / "core", local={"url": broker.url}, s3=credentials, policy=sources) as core:
            core.wait_linked()
            tour = Tour(directory, broker, store, core, made)
            core.deploy(tour.document("good"))
            yield tour


# -- deployments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "uri", "code", "remedy"),
    [
        (
            "no-bucket",
            "s3://no-such-bucket/a.tar.gz",
            "SOURCE_NOT_FOUND",
            "Check the S3Uri and AWS_ENDPOINT_URL_S3",
        ),
        ("no-key", f"s3://{BUCKET}/modle.tar.gz", "SOURCE_NOT_FOUND", "Check the S3Uri"),
        (
            "denied",
            f"s3://{BUCKET}/secret.tar.gz",
            "SOURCE_ACCESS_DENIED",
            '"Action": "s3:GetObject", "Resource": "arn:aws:s3:::',
        ),
        ("junk", f"s3://{BUCKET}/junk.tar.gz", "NOT_AN_ARCHIVE", "Pack it with marram package"),
        ("cut", f"s3://{BUCKET}/cut.tar.gz", "ARCHIVE_BROKEN", "Make it again"),
        ("elsewhere", "s3://other/models/a.tar.gz", "NOT_ALLOWED", 'topics.yaml: sources: ["s3://other/models/*"]'),
    ],
)
def test_a_source_that_gives_no_model(tour: Tour, id: str, uri: str, code: str, remedy: str) -> None:
    tour.deploy(tour.document(id, uri), code, remedy)


def test_a_digest_that_differs(tour: Tour) -> None:
    said = tour.deploy(
        tour.document("digest", Digest="sha256:" + "0" * 64), "MODEL_DIGEST_MISMATCH", "correct the Digest"
    )
    assert tour.model["digest"] in said.all
    again = marram("deploy", tour.directory / "digest.json", "--wait", "--json", "--config", tour.core.config)
    last = json.loads(again.out.splitlines()[-1])
    assert (again.code, last["reason"]["code"]) == (1, "MODEL_DIGEST_MISMATCH"), "the same again says the same"


def test_a_model_that_no_runtime_loads(tour: Tour) -> None:
    tour.deploy(tour.document("no-model", f"s3://{BUCKET}/text.tar.gz"), "RUNTIME_UNKNOWN", "Marram: {Runtime: ..}")


def test_a_function_that_does_not_exist(tour: Tour) -> None:
    tour.deploy(tour.document("no-function", code="ehco"), "FUNCTION_NOT_FOUND", 'did you mean "echo"?')


def test_credentials_that_are_wrong(tour: Tour) -> None:
    wrong: Any = Credentials(tour.s3, "AKIAWRONG", "wrong")
    with Core(tour.directory / "other", local={"url": "mqtt://127.0.0.1:1"}, s3=wrong) as core:
        tour.deploy(tour.document("credentials"), "SOURCE_CREDENTIALS", "AWS_ACCESS_KEY_ID", core=core)


def test_an_id_that_was_used(tour: Tour) -> None:
    used = tour.write("used.json", {**tour.document("good"), "Subscriptions": []})
    refused("ID_REUSED", "new DeploymentId", "deploy", used, "--wait", "--config", tour.core.config)


def test_a_document_with_mistakes_lists_them_all(tour: Tour) -> None:
    document = tour.document("mistakes", Digset="x")
    document["Functions"][0]["FunctionConfiguration"]["Timeout"] = "soon"
    document["Subscriptions"][0]["Subject"] = "a/#/b"
    said = tour.deploy(document, "BAD_DOCUMENT", "Correct the document")
    assert all(each in said.all for each in ("3 problems", 'did you mean "Digest"', "Timeout", "a/#/b")), said.all


@pytest.mark.parametrize("text", ["{no json", "[1, 2]", ""])
def test_a_document_that_is_none(tour: Tour, text: str) -> None:
    refused(
        "BAD_DOCUMENT", "Correct the document", "deploy", tour.write("none.json", text), "--config", tour.core.config
    )


@pytest.mark.parametrize("text", ["a: [1", "\x00", "2026-01-01: 1"])
def test_a_document_that_is_no_yaml(tour: Tour, text: str) -> None:
    refused(
        "BAD_YAML", "JSON", "deploy", tour.write("none.yaml", text), "--config", tour.core.config, exit_code=EX_CONFIG
    )


def test_files_that_are_not_there(tour: Tour) -> None:
    for arguments in (("deploy", "no-such.json"), ("infer", "echo", "no-such.json"), ("deploy", tour.directory)):
        refused("FILE_UNREADABLE", "Name a file", *arguments, "--config", tour.core.config, exit_code=EX_CONFIG)


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_served(tour: Tour) -> None:
    at = ("--config", tour.core.config)
    refused("FUNCTION_NOT_DEPLOYED", "Deploy a group that has it", "infer", "ehco", "--data", "{}", *at)
    refused("BAD_PAYLOAD", "no JSON", "infer", "echo", "--data", "{no json", *at)
    refused("BAD_PAYLOAD", "no JSON", "infer", "echo", *at)
    refused("BAD_PAYLOAD", "msgpack", "infer", "echo", "--data", "{}", "--content-type", "application/msgpack", *at)
    refused("FUNCTION_RAISED", "not today (", "infer", "moody", "--data", '{"mood": "raise"}', *at)
    refused("FUNCTION_RAISED", "__init__.py:", "infer", "moody", "--data", "{}", *at)
    refused("RESULT_NOT_ENCODABLE", "not JSON compliant", "infer", "moody", "--data", '{"mood": "nan"}', *at)
    refused("WORKER_CRASHED", "I am off", "infer", "moody", "--data", '{"mood": "exit"}', *at)
    said = marram("infer", "echo", "--data", "{}", *at)
    assert (said.code, json.loads(said.out)["echo"]) == (0, {}), "after all of that it still serves"


# -- the agent and its settings ---------------------------------------------------------------------------------------


def test_no_agent_runs(tour: Tour, tmp_path: Path) -> None:
    config = tour.write("lonely.yaml", f"core: lonely\nstate: {tmp_path}/state\n")
    for arguments in (("status",), ("infer", "echo", "--data", "{}"), ("deploy", tour.write("d.json", "{}"))):
        refused("AGENT_NOT_RUNNING", "marram run", *arguments, "--config", config, exit_code=EX_CONFIG)
    (tmp_path / "state").mkdir()
    refused("AGENT_NOT_RUNNING", "marram run", "status", "--config", config, exit_code=EX_CONFIG)


def test_no_settings(tour: Tour) -> None:
    for command in ("run", "status"):
        refused("SETTINGS_UNREADABLE", "--config", command, "--config", "no-such.yaml", exit_code=EX_CONFIG)


def test_settings_with_mistakes_list_them_all_with_their_lines(tour: Tour) -> None:
    text = """core: press 7
statee: here
links:
  local: {url: "http://127.0.0.1"}
subscriptions:
  - {source: local, subject: "a/#/b", target: "function:x"}
  - {sorce: local, subject: "a", target: nowhere}
"""
    for command in ("check", "run"):
        said = refused(
            "BAD_SETTINGS", "marram check", command, "--config", tour.write("bad.yaml", text), exit_code=EX_CONFIG
        )
        assert {int(n) for n in re.findall(r"^  line (\d+):", said.err, re.MULTILINE)} == {1, 2, 4, 6, 7}, said.err
        assert "did you mean `state`" in said.err


def test_a_state_directory_that_is_in_use(tour: Tour) -> None:
    refused("STATE_IN_USE", "Stop it first", "run", "--config", tour.core.config, exit_code=EX_CONFIG)


def test_a_state_directory_that_cannot_be(tour: Tour) -> None:
    config = tour.write("state.yaml", f"core: press-8\nstate: {tour.write('a-file', '')}/state\n")
    refused("STATE_UNUSABLE", "Set 'state'", "run", "--config", config, exit_code=EX_CONFIG)


def test_a_port_that_is_in_use(tour: Tour, tmp_path: Path) -> None:
    listen = f"127.0.0.1:{tour.broker.port}"
    text = f"core: press-9\nstate: {tmp_path}/state\nlinks: {{local: {{url: embedded, listen: '{listen}'}}}}\n"
    config = tour.write("port.yaml", text)
    refused("PORT_IN_USE", "listen", "run", "--config", config, exit_code=EX_CONFIG)
    refused("PORT_IN_USE", "listen", "broker", "--config", config, exit_code=EX_CONFIG)
    refused("BAD_LISTEN", "127.0.0.1:1883", "broker", "--listen", "nowhere:at:all", exit_code=EX_CONFIG)


# -- over a broker ----------------------------------------------------------------------------------------------------


def test_no_broker_there(tour: Tour) -> None:
    def no(code: str, remedy: str, url: str) -> None:
        refused(code, remedy, "status", "--broker", url, "--core", CORE)

    no("BROKER_UNREACHABLE", "connection refused. Check that it runs", f"mqtt://127.0.0.1:{free_port()}")
    no("BROKER_NAME_UNKNOWN", "Check the name", "mqtt://no-such-host.invalid")
    no("TLS_FAILED", "Check that the port speaks TLS", f"mqtts://127.0.0.1:{tour.broker.port}")


def test_a_broker_that_lets_nobody_in(tour: Tour, tmp_path: Path) -> None:
    with Mosquitto(tmp_path, anonymous=False) as broker:
        refused("LOGIN_REFUSED", "password", "status", "--broker", broker.url, "--core", CORE)


@pytest.mark.parametrize("url", ["127.0.0.1:1883", "mqtt://[::1", "mqtt://host:port"])
def test_a_bad_broker_url(tour: Tour, url: str) -> None:
    refused("BAD_URL", "mqtt://host:1883", "status", "--broker", url, "--core", CORE, exit_code=EX_CONFIG)


def test_an_unknown_core(tour: Tour) -> None:
    at = ("--broker", tour.broker.url, "--core", "press-77")
    file = tour.write("far.json", tour.document("far"))
    with ThreadPoolExecutor() as both:  # each waits for some seconds
        status = both.submit(refused, "CORE_SILENT", "Check --core", "status", *at)
        deploy = both.submit(refused, "CORE_SILENT", "deploys this document if", "deploy", file, "--wait", *at)
        assert "press-77" in status.result().err
        deploy.result()


def test_what_the_broker_needs_to_be_told(tour: Tour) -> None:
    broker = ("--broker", tour.broker.url)
    refused("CORE_MISSING", "topics.yaml", "status", *broker, exit_code=EX_CONFIG)
    refused("BAD_CORE", "1 to 128", "status", *broker, "--core", "#", exit_code=EX_CONFIG)
    refused("TOPIC_MISSING", "subscribed", "infer", "echo", "--data", "{}", *broker, exit_code=EX_CONFIG)
    refused("BAD_TOPIC", "wildcard", "infer", "echo", "--data", "{}", "--topic", "a/#", *broker, "--core", CORE)
    refused(
        "NO_ANSWER", "Check --topic", "infer", "echo", "--data", "{}", "--topic", "nobody/hears", "--timeout", "0.5",
        *broker, "--core", CORE,
    )  # fmt: skip


def test_a_deployment_that_fails_over_a_broker(tour: Tour) -> None:
    file = tour.write("far-junk.json", tour.document("far-junk", f"s3://{BUCKET}/junk.tar.gz"))
    at = ("--broker", tour.broker.url, "--core", CORE)
    refused("NOT_AN_ARCHIVE", "marram package", "deploy", file, "--wait", *at)
    refused("BAD_DOCUMENT", "Correct the document", "deploy", tour.write("none.json", "{no"), "--wait", *at)


# -- packages and usage -----------------------------------------------------------------------------------------------


def test_what_cannot_be_packed(tour: Tour, tmp_path: Path) -> None:
    file = tour.write("model.onnx", "weights")
    refused("NOT_A_DIRECTORY", "Name the directory", "package", file, exit_code=EX_CONFIG)
    refused("NOT_A_DIRECTORY", "Name the directory", "package", tmp_path / "none", exit_code=EX_CONFIG)
    (tmp_path / "empty" / "below").mkdir(parents=True)
    refused("EMPTY_DIRECTORY", "Put the model's files", "package", tmp_path / "empty", exit_code=EX_CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.onnx").write_text("weights")
    full = ("package", tmp_path / "full", "--output")
    refused("ARCHIVE_NAME", ".tar.gz", *full, tmp_path / "model.rar", exit_code=EX_CONFIG)
    refused("ARCHIVE_UNWRITABLE", "--output", *full, tmp_path / "none" / "model.zip", exit_code=EX_CONFIG)
    (tmp_path / "full" / "link").symlink_to(file)
    refused("NOT_PACKABLE", "copy it", *full, tmp_path / "model.zip", exit_code=EX_CONFIG)


@pytest.mark.parametrize(
    "arguments",
    [(), ("depoly", "x"), ("infer", "echo", "--timeout", "-1"), ("deploy", "x", "--timeout", "nan")],
)
def test_a_command_that_is_misspelt(arguments: tuple[str, ...]) -> None:
    said = marram(*arguments)
    assert said.code == 2
    assert "usage: marram" in said.err
