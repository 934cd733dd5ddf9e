"""AWS credentials for the thing's certificate: installers, S3, and an emulator of AWS IoT's credential provider.

The emulator is written from the developer guide: it demands a client certificate, and knows one alias and one thing.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.definition import Deployment, Resource, S3Source
from agent.deployment.installation import fetch_document, install, job_of
from agent.errors import AgentError, ConfigError
from agent.settings import AwsRole, Caps, FetchLimits, reader
from tests.certificate_kit import DAY, Authority
from tests.conftest import Site
from tests.mqtt_kit import free_port
from tests.s3_kit import S3Server, s3_server  # noqa: F401 - a fixture
from tests.test_installer import Installers, archive, digest, installers  # noqa: F401 - a fixture
from tests.test_main_job import group, put_model

ONCE = FetchLimits(attempts=1, backoff_s=0.05)


class Provider:
    """The credential provider.

    Attributes:
        lives: how long what it gives is valid.
        trouble: (status, message) of a refusal; None: it gives.
        seen: (path, thing, the certificate's common name) of each request.
    """

    def __init__(self, authority: Authority) -> None:
        self.lives = timedelta(hours=1)
        self.trouble: tuple[int, str] | None = None
        self.body: dict[str, Any] | None = None
        self.seen: list[tuple[str, str | None, str]] = []
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                certificate = self.connection.getpeercert()  # type: ignore[attr-defined]
                name = dict(pair[0] for pair in certificate["subject"])["commonName"]
                provider.seen.append((self.path, self.headers["x-amzn-iot-thingname"], name))
                status, body = provider.answer(self.path)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        pair = authority.issue("provider")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a handshake that fails is what some tests are about

        self._server = Server(("localhost", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint = f"localhost:{self._server.server_address[1]}"

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if self.trouble:
            return self.trouble[0], {"message": self.trouble[1]}
        if path != "/role-aliases/core-alias/credentials":
            return 404, {"message": "Role alias does not exist"}
        expires = (datetime.now(timezone.utc) + self.lives).strftime("%Y-%m-%dT%H:%M:%SZ")
        given = {"accessKeyId": "ASIAROLE", "secretAccessKey": "s3cr3t", "sessionToken": "t0k3n", "expiration": expires}
        return 200, self.body if self.body is not None else {"credentials": given}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def provider(authority: Authority) -> Iterator[Provider]:
    made = Provider(authority)
    yield made
    made.close()


@pytest.fixture
def role(authority: Authority, provider: Provider) -> AwsRole:
    pair = authority.issue("press-7")
    return AwsRole(provider.endpoint, "core-alias", "press-7", str(pair.cert), str(pair.key), str(authority.ca))


@pytest.fixture
def bare(installers: Installers, s3_server: S3Server) -> Installers:  # noqa: F811
    """Installers that find S3 and no credentials of their own."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    installers.environment({key: value for key, value in s3_server.environment().items() if key not in names})
    return installers


def fetched(installers: Installers, role: AwsRole | None, *sources: S3Source) -> dict[str, str]:  # noqa: F811
    resources = tuple(Resource(f"r{i}", f"R{i}", source) for i, source in enumerate(sources))
    deployment = Deployment("d", "NewDeployment", None, "", resources)
    job = job_of(deployment, {}, {}, ["*"], ONCE, Caps(), role=role)
    return dict(asyncio.run(install(installers.store.root, job, installers.events.append)).objects)


def refusal(installers: Installers, role: AwsRole | None, source: S3Source) -> AgentError:  # noqa: F811
    with pytest.raises(AgentError) as caught:
        fetched(installers, role, source)
    assert "s3cr3t" not in str(caught.value)
    return caught.value


def test_what_needs_credentials_is_fetched_with_a_certificate(
    bare: Installers,
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
) -> None:
    one, two = (S3Source(s3_server.put("role-a", f"{n}.zip", archive(n))) for n in (1, 2))
    assert refusal(bare, None, one).code == "SOURCE_CREDENTIALS"
    assert set(fetched(bare, role, one, two).values()) == {digest(archive(n))[7:] for n in (1, 2)}
    assert provider.seen == [("/role-aliases/core-alias/credentials", "press-7", "press-7")], "asked once"
    document = asyncio.run(fetch_document(bare.store.root, one, ["*"], ONCE, role))
    assert document == archive(1)


def test_credentials_are_asked_for_again_before_they_expire(
    bare: Installers,
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
) -> None:
    provider.lives = timedelta(minutes=5)  # botocore wants new ones ten minutes before the end
    sources = [S3Source(s3_server.put("role-b", f"{n}.zip", archive(n))) for n in (1, 2)]
    fetched(bare, role, *sources)
    assert len(provider.seen) >= 2


def test_the_role_comes_before_other_credentials(
    installers: Installers,  # noqa: F811
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
) -> None:
    fetched(installers, role, S3Source(s3_server.put("role-c", "m.zip", archive(1))))
    assert len(provider.seen) == 1


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        ((403, "Access Denied"), "AWS_ROLE_REFUSED",
         '"Action": "iot:AssumeRoleWithCertificate", "Resource": "arn:aws:iot:REGION:ACCOUNT:rolealias/core-alias"'),
        ((400, "Invalid thing name passed"), "AWS_ROLE_REFUSED", "Invalid thing name passed"),
        ((404, "Role alias does not exist"), "AWS_ROLE_UNKNOWN", "aws.role_alias"),
        ((500, "oops"), "AWS_ROLE_UNREACHABLE", "oops"),
        ((429, "slow down"), "AWS_ROLE_UNREACHABLE", "slow down"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_add(
    bare: Installers,
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
    trouble: tuple[int, str],
    code: str,
    words: str,
) -> None:
    source = S3Source(s3_server.put("role-d", "m.zip", archive(1)))
    provider.trouble = trouble
    said = refusal(bare, role, source)
    assert said.code == code
    assert words in str(said)
    assert "core-alias" in str(said)


def test_certificates_that_are_not_taken(
    bare: Installers,
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
    authority: Authority,
    tmp_path: Path,
) -> None:
    source = S3Source(s3_server.put("role-e", "m.zip", archive(1)))
    other = Authority(tmp_path / "other")
    stranger, old = other.issue("press-7"), authority.issue("old", begins=-9 * DAY, ends=-2 * DAY)
    for pair in (stranger, old):
        wrong = replace(role, cert=str(pair.cert), key=str(pair.key))
        assert refusal(bare, wrong, source).code == "AWS_ROLE_CERTIFICATE"
    assert refusal(bare, replace(role, ca=str(other.ca)), source).code == "AWS_ROLE_CERTIFICATE"
    assert refusal(bare, replace(role, key=str(stranger.key)), source).code == "AWS_ROLE_CERTIFICATE"
    assert refusal(bare, replace(role, role_alias="a/../b"), source).code == "AWS_ROLE_UNKNOWN"
    assert refusal(bare, replace(role, endpoint=f"localhost:{free_port()}"), source).code == "AWS_ROLE_UNREACHABLE"
    provider.body = {"credentials": {}}
    assert refusal(bare, role, source).code == "AWS_ROLE_REFUSED"
    Path(role.key).chmod(0o644)
    assert refusal(bare, role, source).code == "KEY_FILE_LOOSE"


def test_the_settings_take_the_links_certificate(tmp_path: Path, authority: Authority) -> None:
    pair, own = authority.issue("press-7"), authority.issue("own")

    def load(aws: str, cloud: str = f"{{url: 'mqtts://h', cert: {pair.cert}, key: {pair.key}}}") -> AwsRole | None:
        (tmp_path / "topics.yaml").write_text(f"core: press-7\nlinks: {{cloud: {cloud}}}\naws: {{{aws}}}")
        return reader.load(tmp_path / "topics.yaml").aws

    both = "credential_endpoint: c1.credentials.iot.eu-west-1.amazonaws.com, role_alias: core-alias"
    host = "c1.credentials.iot.eu-west-1.amazonaws.com"
    assert load(both) == AwsRole(host, "core-alias", "press-7", str(pair.cert), str(pair.key))
    found = load(f"{both}, thing: p7, cert: {own.cert}, key: {own.key}, ca: {authority.ca}", "mqtt://h")
    assert found == AwsRole(host, "core-alias", "p7", str(own.cert), str(own.key), str(authority.ca))
    for aws, words in (
        ("role_alias: a", "`credential_endpoint` is missing"),
        ("credential_endpoint: 'http://x/y', role_alias: a", "describe-endpoint"),
        ("credential_endpoint: h, role_alias: 'a/b'", "a role alias"),
        (f"{both}, cert: {own.cert}", "both `cert` and `key`"),
        (f"{both}, cert: {own.cert}, key: {pair.key}", "do not belong together"),
        (f"{both}, alias: b", "did you mean `role_alias`"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(aws)
        assert words in caught.value.message
    with pytest.raises(ConfigError, match="needs a certificate"):
        load(both, "mqtt://h")


def test_samples_are_uploaded_in_the_role(
    bare: Installers,
    s3_server: S3Server,  # noqa: F811
    provider: Provider,
    role: AwsRole,
    tmp_path: Path,
) -> None:
    """By the uploader as the agent starts it; S3 gets nothing from it without the role."""
    (tmp_path / "sample").write_bytes(b"payload")
    s3_server.put("role-uploads", "there", b"")
    code = "import sys; from agent.capture.uploader import main; sys.exit(main())"

    def uploaded(given: AwsRole | None) -> dict[str, Any]:
        job = {"name": "s", "file": str(tmp_path / "sample"), "bucket": "role-uploads", "key": "s", "type": "x/y"}
        line = json.dumps({**job, "role": asdict(given) if given else None}) + "\n"
        done = subprocess.run([sys.executable, "-c", code], input=line, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    assert uploaded(None)["error"]["code"] == "UPLOAD_CREDENTIALS"
    assert uploaded(role) == {"name": "s"}
    assert provider.seen
    provider.trouble = (403, "Access Denied")
    assert uploaded(role)["error"]["code"] == "AWS_ROLE_REFUSED"


def test_a_whole_agent_deploys_in_a_role(site: Site, provider: Provider, role: AwsRole) -> None:
    import yaml

    core = site.core()
    values = yaml.safe_load(core.config.read_text())
    values["aws"] = {"credential_endpoint": role.endpoint, "role_alias": "core-alias", "cert": role.cert,
                     "key": role.key, "ca": role.ca}  # fmt: skip
    core.config.write_text(yaml.safe_dump(values))
    with core:
        core.deploy(group("in-a-role", put_model(site, 1)["uri"]))
        provider.trouble = (403, "Access Denied")
        status = core.deploy(group("refused", put_model(site, 2, key="two.tar.gz")["uri"]), expect="FAILED")
    assert status["reason"]["code"] == "AWS_ROLE_REFUSED"
    assert provider.seen
    assert "s3cr3t" not in core.tail(100_000)
