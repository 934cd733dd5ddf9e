"""The error tour: whatever a user does wrong with the commands is told in one clear error, with a code and a remedy.

Every case runs the real command as a child. One core serves them all, so that the tour stays short.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agent_kit import BUCKET, CORE, Core, function, model_archive, resource, subscription
from tests.mqtt_kit import Mosquitto, free_port
from tests.s3_kit import S3Server
from tests.source_kit import ROOT

CODE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*(?=:)")
EX_CONFIG = 78
SETUP_REQUESTS = 6  # what is asked of the store before it begins to look at credentials


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
    said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
    print(arguments, said.code, said.out, said.err, sep='\n')
    assert "Traceback" not in said.all, said.all
    return said


def refused(code: str, remedy: str, *arguments: object, exit_code: int = 1, **more: Any) -> Said:
    """Runs a command that must fail: `code` and `remedy` are what its error must hold."""
    said = marram(*arguments, **more)
    assert said.code == exit_code, said.all
    assert code in CODE.findall(said.all) or f'"{code}"' in said.out, said.all
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
        said = refused(code, remedy, "deploy", file, "--wait", "--config", (core or self.core).config)
        as_json = marram("deploy", file, "--wait", "--json", "--config", (core or self.core).config)
        last = json.loads(as_json.out.splitlines()[-1])
        assert (as_json.code, last["reason"]["code"]) == (1, code), "the same again says the same"
        return said


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
    iam = store.client("iam")
    iam.create_user(UserName="core")
    key = iam.create_access_key(UserName="core")["AccessKey"]
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="core", PolicyName="reads", PolicyDocument=policy)
    broker = Mosquitto(directory / "broker")
    with broker:
        core = Core(directory / "core", local={"url": broker.url}, s3=store)
        core.credentials = (key["AccessKeyId"], key["SecretAccessKey"])
        with core:
            core.wait_linked()
            tour = Tour(directory, broker, store, core, made)
            core.deploy(tour.document("good"))
            yield tour
