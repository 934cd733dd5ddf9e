"""Secrets from AWS Secrets Manager: fetched from a real server, sealed on disk, told to whom they are meant for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cli import commands
from agent.deployment.document import parse
from agent.deployment.vault import Vault
from agent.errors import IntegrityError, RejectedError
from agent.settings import Policy
from functions.secrets import Secrets, UnknownSecretError
from tests.agent_kit import Core, function
from tests.conftest import Site
from tests.s3_kit import S3Server

ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:plc/password-AbCdEf"
ALLOWED = {"sources": ["arn:aws:secretsmanager:us-east-1:123456789012:secret:plc/*"]}
NO_CONTAINER = {"IsolationMode": "NoContainer"}
FIRST, SECOND, PENDING = "sesame-1-opens", "sesame-2-opens", b"\x00\xffpending-bytes"


def secret(arn: str, *labels: str, id: str = "password") -> dict[str, Any]:
    data = {"ARN": arn, **({"AdditionalStagingLabelsToDownload": list(labels)} if labels else {})}
    return {"Id": id, "Name": id, "ResourceDataContainer": {"SecretsManagerSecretResourceData": data}}


def group(id: str, resources: list[Any], **more: Any) -> dict[str, Any]:
    functions = [function("keeper", models=("password",)), function("other", arn="function:keeper")]
    functions.append(function("burglar", arn="function:keeper", Environment={"Execution": NO_CONTAINER}))
    return {"DeploymentId": id, "Resources": resources, "Functions": functions, "Subscriptions": [], **more}


# -- documents --------------------------------------------------------------------------------------------------------


def refusal(document: dict[str, Any], policy: Policy | None = None) -> str:
    with pytest.raises(RejectedError) as caught:
        parse(json.dumps(document).encode(), core="press-7", policy=policy or Policy(sources=("arn:*",)))
    return f"{caught.value.code}: {caught.value.text}"


def test_a_document_names_secrets_and_who_may_have_them() -> None:
    document = json.dumps(group("d", [secret(ARN, "AWSPENDING", "AWSCURRENT")])).encode()
    found = parse(document, core="press-7", policy=Policy(sources=("arn:*",)))
    assert [(each.id, each.arn, each.labels) for each in found.secrets] == [("password", ARN, ("AWSPENDING",))]
    assert [each.secrets for each in found.functions] == [("password",), (), ()]
    assert (found.resources, found.functions[0].policies) == ((), ())


def test_what_is_wrong_with_a_secret_is_said() -> None:
    assert "a secret's ARN such as \"arn:aws:secret" in refusal(group("d", [secret("arn:aws:s3:::bucket")]))
    assert "DownloadLabels" in refusal(group("d", [{**secret(ARN), "DownloadLabels": 1}]))
    wrong = secret(ARN)
    wrong["ResourceDataContainer"]["SecretsManagerSecretResourceData"]["AdditionalStagingLabelsToDownload"] = [7]
    assert "AdditionalStagingLabelsToDownload[0]: must be a staging label" in refusal(group("d", [wrong]))
    written = group("d", [secret(ARN)])
    policies = written["Functions"][0]["FunctionConfiguration"]["Environment"]["ResourceAccessPolicies"]
    policies[0]["Permission"] = "rw"
    assert "can only be read" in refusal(written)
    assert refusal(group("d", [secret(ARN)]), Policy()).startswith("NOT_ALLOWED")
    assert f'sources: ["{ARN}"]' in refusal(group("d", [secret(ARN)]), Policy())


# -- at rest ----------------------------------------------------------------------------------------------------------


def test_a_vault_gives_back_what_it_sealed_and_nothing_else(tmp_path: Path) -> None:
    vault, value = Vault(tmp_path), {"ARN": ARN, "Versions": [{"SecretString": FIRST}]}
    sealed = vault.seal(ARN, value)
    key = tmp_path / "vault" / "key"
    assert vault.open(ARN, sealed) == value
    assert FIRST.encode() not in sealed
    assert vault.seal(ARN, value) != sealed
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for arn, bytes_ in ((f"{ARN}x", sealed), (ARN, sealed[:-1] + b"x"), (ARN, b"")):
        with pytest.raises(IntegrityError, match="SECRET_UNREADABLE"):
            vault.open(arn, bytes_)
    key.unlink()
    with pytest.raises(IntegrityError, match="the key of this core's vault is missing"):
        vault.open(ARN, sealed)


def test_a_function_finds_its_secrets_by_any_of_their_names() -> None:
    version = {"ARN": ARN, "Name": "plc/password", "VersionId": "v", "VersionStages": ["AWSCURRENT"], "CreatedDate": 5}
    secrets = Secrets([{"id": "password", "arn": ARN, "versions": [{**version, "SecretString": FIRST}]}])
    for name in (ARN, "plc/password", "password"):
        found = secrets.get(name)
        assert (found.value, found.version_id, found.created_ms) == (FIRST, "v", 5)
        assert FIRST not in repr(found)
    with pytest.raises(UnknownSecretError, match=r"no access to the secret 'mine'.*ResourceAccessPolicies"):
        secrets.get("mine")
    with pytest.raises(UnknownSecretError, match="no version 'OLD' here; its staging labels: AWSCURRENT"):
        secrets.get(ARN, "OLD")


# -- a whole agent ----------------------------------------------------------------------------------------------------


@dataclass
class Safe:
    """A core and a secret in its Secrets Manager."""

    core: Core
    server: S3Server
    arn: str

    def ask(self, guess: str, *, function: str = "keeper", **more: Any) -> dict[str, Any]:
        event = json.dumps({"secret": self.arn, "guess": guess, **more}).encode()
        place = commands.Place(self.core.config)
        answer = commands.infer(place, function, event, topic=None, content_type=None, timeout_s=30)
        found: dict[str, Any] = answer.payload if isinstance(answer.payload, dict) else json.loads(answer.payload)
        return found

    def put(self, value: str) -> None:
        self.server.client("secretsmanager").put_secret_value(SecretId=self.arn, SecretString=value)

    def calls(self) -> int:
        return len([each for each in self.server.requests("/") if each[:2] == ("POST", "/")])


@pytest.fixture
def safe(site: Site, request: pytest.FixtureRequest) -> Iterator[Safe]:
    client = site.s3.client("secretsmanager")
    made = client.create_secret(Name=f"plc/{site.directory.name}", SecretString=FIRST)
    client.put_secret_value(SecretId=made["ARN"], SecretBinary=PENDING, VersionStages=["AWSPENDING"])
    with site.core(policy=ALLOWED) as core:
        yield Safe(core, site.s3, made["ARN"])


def everywhere(core: Core) -> bytes:
    """All bytes that the core left on its disk, its log and its statuses included."""
    found = []
    for path in core.directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # the agent tidies up after a deployment meanwhile
                found.append(path.read_bytes())
    return b"".join(found) + json.dumps(core.status()).encode()


def test_a_secret_reaches_its_function_and_nobody_else(safe: Safe) -> None:
    core = safe.core
    core.deploy(group("one", [secret(safe.arn, "AWSPENDING")]))
    answer = safe.ask(FIRST)
    assert (answer["right"], answer["stages"], answer["in_environment"]) == (True, ["AWSCURRENT"], False)
    assert FIRST not in answer["shown"]
    assert safe.ask(PENDING.hex(), stage="AWSPENDING")["right"]
    assert safe.ask(FIRST, stage="OLD")["error"]["code"] == "NO_SUCH_SECRET"
    assert "ResourceAccessPolicies" in safe.ask(FIRST, function="other")["error"]["message"]
    assert safe.ask("", list=str(core.state / "vault"), function="burglar") == [], "the key is not seen by functions"
    left = everywhere(core)
    assert FIRST.encode() not in left
    assert PENDING not in left
    sealed = core.state / "current" / "secrets" / "password"
    assert sealed.stat().st_mode & 0o077 == 0


def test_a_rotated_secret_comes_with_a_redeployment_and_goes_with_a_rollback(safe: Safe) -> None:
    core = safe.core
    core.deploy(group("one", [secret(safe.arn)]))
    before = safe.calls()
    core.deploy({"DeploymentId": "again", "DeploymentType": "Redeployment"})
    assert safe.calls() - before == 1, "an unchanged version is asked about, and not fetched"
    safe.put(SECOND)
    assert safe.ask(FIRST)["right"]
    core.deploy({"DeploymentId": "rotated", "DeploymentType": "Redeployment"})
    assert safe.ask(SECOND)["right"]
    *_, last = commands.turn(core.config, "rollback", wait=True, timeout_s=60)
    assert last["status"] == "SUCCEEDED"
    assert safe.ask(FIRST)["right"]
    core.stop()
    core.store_reachable = False
    core.start()
    core.wait_ready("keeper")
    assert safe.ask(FIRST)["right"], "after a restart, with no cloud"


def test_without_its_key_a_secret_is_lost_and_the_rest_runs(safe: Safe) -> None:
    core = safe.core
    core.deploy(group("one", [secret(safe.arn)]))
    core.stop()
    (core.state / "vault" / "key").unlink()
    core.start()
    core.wait_ready("other")
    assert "SECRET_UNREADABLE" in core.tail()
    assert safe.ask(FIRST)["error"]["code"] in ("FUNCTION_FAILED", "SECRET_UNREADABLE")
    core.deploy({"DeploymentId": "mended", "DeploymentType": "Redeployment"})
    assert safe.ask(FIRST)["right"]


def test_a_secret_that_cannot_be_had_fails_the_deployment(safe: Safe) -> None:
    core, client = safe.core, safe.server.client("secretsmanager")

    def reason(id: str, *labels: str, arn: str = safe.arn) -> str:
        told = core.deploy(group(id, [secret(arn, *labels)]), expect="FAILED")["reason"]
        return f"{told['code']}: {told['message']}"

    assert reason("nowhere", arn=ARN).startswith("SECRET_NOT_FOUND")
    missing = reason("label", "NEXT")
    assert missing.startswith("SECRET_STAGE_MISSING")
    assert "AWSCURRENT, AWSPENDING" in missing
    client.delete_secret(SecretId=safe.arn)
    assert reason("deleted").startswith("SECRET_DELETED")
    assert FIRST not in core.tail(100_000)


def test_a_secret_that_is_denied_is_answered_with_the_statement_to_add(site: Site) -> None:
    server = S3Server(authenticate=4)
    try:
        made = server.client("secretsmanager").create_secret(Name="plc/denied", SecretString=FIRST)
        iam = server.client("iam")
        iam.create_user(UserName="core")
        key = iam.create_access_key(UserName="core")["AccessKey"]
        rights = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
        iam.put_user_policy(UserName="core", PolicyName="p", PolicyDocument=policy)

        class Denied:
            def environment(self) -> dict[str, str]:
                return server.environment(key["AccessKeyId"], key["SecretAccessKey"])

        core = site.core(policy=ALLOWED)
        core.s3 = Denied()  # type: ignore[assignment]
        with core:
            told = core.deploy(group("denied", [secret(made["ARN"])]), expect="FAILED")["reason"]
        assert told["code"] == "SECRET_ACCESS_DENIED"
        assert f'"Action": "secretsmanager:GetSecretValue", "Resource": "{made["ARN"]}"' in told["message"]
    finally:
        server.stop()
