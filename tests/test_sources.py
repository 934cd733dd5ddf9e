"""Sources one by one: training jobs and code packages, and what each server's answers mean to whoever deploys.

moto is SageMaker and S3 here; `Told` is a server that answers as AWS would where moto does not.
"""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli.commands import Place, infer
from agent.deployment.definition import Deployment, FileSource, Function, Resource, S3Source, SageMakerSource
from agent.deployment.installation import install, job_of
from agent.settings import Caps, FetchLimits
from tests.agent_kit import BUCKET, function
from tests.conftest import Site
from tests.s3_kit import S3Server, s3_server  # noqa: F401 - a fixture
from tests.test_installer import Installers, archive, digest, installers  # noqa: F401 - a fixture

ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/"


class Told:
    """A server that gives the same answer to everything: ``status``, ``body`` and the headers that AWS sends."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.headers: dict[str, str] = {}
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

            do_GET = do_POST = answer  # noqa: N815 - the names that the library asks for

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def job(self, **values: Any) -> None:
        self.status, self.body = 200, json.dumps(values).encode()

    def json_error(self, status: int, code: str, message: str) -> None:
        self.status, self.body = status, json.dumps({"__type": code, "message": message}).encode()

    def s3_error(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def told(installers: Installers, s3_server: S3Server) -> Iterator[Told]:  # noqa: F811
    server = Told()
    where = {"AWS_ENDPOINT_URL_S3": server.endpoint, "AWS_ENDPOINT_URL_SAGEMAKER": server.endpoint}
    installers.environment({**s3_server.environment(), **where})
    yield server
    server.close()


# -- training jobs -----------------------------------------------------------------------------------------------------


def test_the_artefact_of_a_training_job(installers: Installers, s3_server: S3Server) -> None:  # noqa: F811
    s3_server.client("sagemaker").create_training_job(
        TrainingJobName="activity-7",
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
        RoleArn="arn:aws:iam::123456789012:role/x",
        OutputDataConfig={"S3OutputPath": "s3://jobs/out"},
        ResourceConfig={"InstanceType": "ml.m4.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    s3_server.put("jobs", "out/activity-7/output/model.tar.gz", archive(7))
    source = SageMakerSource(ARN + "activity-7")
    found = installers.run(source)
    assert found.objects == {"r0": digest(archive(7))[7:]}
    assert set(found.known) == {source.name}
    before = len(s3_server.requests("activity-7"))
    assert installers.run(source).objects == found.objects
    assert [status for _, _, status in s3_server.requests("activity-7")[before:]] == [304]
    assert installers.code(SageMakerSource(ARN + "none")) == "SOURCE_NOT_FOUND"
    assert ARN + "none" in installers.said


@pytest.mark.parametrize(
    ("job", "code", "words"),
    [
        ({"TrainingJobStatus": "Failed", "FailureReason": "no data"}, "TRAINING_JOB_FAILED", "Failed: no data"),
        ({"TrainingJobStatus": "Stopped"}, "TRAINING_JOB_FAILED", "ended as Stopped"),
        ({"TrainingJobStatus": "InProgress"}, "TRAINING_JOB_UNFINISHED", "it is InProgress"),
        ({"TrainingJobStatus": "Completed", "ModelArtifacts": {}}, "TRAINING_JOB_EMPTY", "no model artefact"),
    ],
)
def test_a_job_without_a_model_is_refused(
    installers: Installers,  # noqa: F811
    told: Told,
    job: dict[str, Any],
    code: str,
    words: str,
) -> None:
    told.job(**job)
    assert installers.code(SageMakerSource(ARN + "j")) == code
    assert words in installers.said


def test_a_job_that_we_may_not_describe(installers: Installers, told: Told) -> None:  # noqa: F811
    told.json_error(400, "AccessDeniedException", "User is not authorized to perform: sagemaker:DescribeTrainingJob")
    assert installers.code(SageMakerSource(ARN + "j")) == "SOURCE_ACCESS_DENIED"
    statement = {"Effect": "Allow", "Action": "sagemaker:DescribeTrainingJob", "Resource": ARN + "j"}
    assert json.dumps(statement) in installers.said
    told.json_error(400, "ExpiredTokenException", "The security token included in the request is expired")
    assert installers.code(SageMakerSource(ARN + "j")) == "SOURCE_CREDENTIALS"
    told.json_error(500, "InternalFailure", "")
    assert installers.code(SageMakerSource(ARN + "j")) == "SOURCE_UNREACHABLE"


# -- S3's answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "message", "code", "words"),
    [
        (400, "InvalidRequest", "The object was stored using a form of Server Side Encryption. The correct parameters "
         "must be provided to retrieve the object.", "SOURCE_ENCRYPTED", "SSE-KMS"),
        (400, "InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys must provide "
         "a valid encryption algorithm.", "SOURCE_ENCRYPTED", "SSE-KMS"),  # as Ceph says it
        (403, "AccessDenied", "User: arn:aws:iam::1:user/core is not authorized to perform: kms:Decrypt on resource: "
         "arn:aws:kms:eu-west-1:1:key/k-1", "SOURCE_ACCESS_DENIED",
         '{"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "arn:aws:kms:eu-west-1:1:key/k-1"}'),
        (403, "AccessDenied", "Access Denied", "SOURCE_ACCESS_DENIED",
         '{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::told-b/m.zip"}'),
        (403, "ExpiredToken", "The provided token has expired.", "SOURCE_CREDENTIALS", "ExpiredToken"),
        (503, "SlowDown", "Please reduce your request rate.", "SOURCE_UNREACHABLE", "SlowDown"),
    ],
)  # fmt: skip
def test_what_s3_says_is_told_with_a_remedy(
    installers: Installers,  # noqa: F811
    told: Told,
    status: int,
    error: str,
    message: str,
    code: str,
    words: str,
) -> None:
    told.s3_error(status, error, message)
    assert installers.code(S3Source("s3://told-b/m.zip")) == code
    assert words in installers.said


def test_two_resources_of_one_source_have_one_version(installers: Installers, s3_server: S3Server) -> None:  # noqa: F811
    source = S3Source(s3_server.put("inst-twice", "m.zip", archive(1)))
    before = len(s3_server.requests("inst-twice"))
    found = installers.run(source, source)
    assert set(found.objects.values()) == {digest(archive(1))[7:]}
    assert len(s3_server.requests("inst-twice")[before:]) == 1


# -- code packages -----------------------------------------------------------------------------------------------------


def test_a_code_package_is_an_object_of_its_function(installers: Installers, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "model.zip").write_bytes(archive(1))
    (tmp_path / "code.zip").write_bytes(archive(2))

    def job(promised: str) -> dict[str, Any]:
        resource = Resource("m", "M", FileSource(str(tmp_path / "model.zip")))
        function = Function("f", "function:f", code=FileSource(str(tmp_path / "code.zip")), code_digest=promised)
        deployment = Deployment("d", "NewDeployment", None, "", (resource,), (function,))
        return job_of(deployment, {}, {}, ["*"], FetchLimits(), Caps())

    found = asyncio.run(install(installers.store.root, job(digest(archive(2))), installers.events.append))
    assert (found.objects, found.code) == ({"m": digest(archive(1))[7:]}, {"f": digest(archive(2))[7:]})
    installers.store.objects.verify(found.code["f"])
    with pytest.raises(Exception, match="CODE_DIGEST_MISMATCH"):
        asyncio.run(install(installers.store.root, job(digest(b"")), installers.events.append))


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_no_more_a_second_than_is_allowed(installers: Installers, s3_server: S3Server) -> None:  # noqa: F811
    source = S3Source(s3_server.put("inst-slow", "m.zip", archive(3, 600_000)))
    begun_s = time.monotonic()
    installers.run(source, limits=replace(FetchLimits(), max_bytes_per_s=300_000))
    assert time.monotonic() - begun_s >= 1.9  # 600,000 bytes and more at 300,000 a second


def test_a_functions_code_comes_and_goes_back_with_its_models(site: Site) -> None:
    """In a whole agent: code from S3, a new version of it, and one that cannot be imported."""

    def code(version: int, body: str = "") -> dict[str, Any]:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as pack:
            pack.writestr(
                "__init__.py", f"import names\n{body}\ndef handler(event, context):\n    return names.VERSION"
            )
            pack.writestr("names.py", f"VERSION = {version}")
        uri = site.s3.put(BUCKET, f"code-{version}.zip", out.getvalue())
        return {"Code": {"S3Uri": uri, "Digest": digest(out.getvalue())}}

    def group(id: str, marram: dict[str, Any]) -> dict[str, Any]:
        return {"DeploymentId": id, "Functions": [function("teller", marram=marram)]}

    with site.core(policy={"allow_unsigned_code": True}) as core:
        assert core.deploy(group("one", code(1)))["status"] == "SUCCEEDED"

        def asked() -> bytes:
            place = Place(core.config)
            return infer(place, "teller", b"{}", topic=None, content_type=None, timeout_s=20).payload

        assert asked() == b"1"
        core.deploy(group("two", code(2)))
        assert asked() == b"2"
        core.deploy(group("three", code(3, "raise ValueError")), expect="FAILED")
        assert asked() == b"2"
