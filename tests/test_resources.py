"""What a function may do with its resources, with a real agent: what it may only read, it cannot write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.deployment.objects import Objects
from tests.agent_kit import function, resource, subscription
from tests.conftest import Site
from tests.mqtt_kit import wait_until
from tests.test_main_job import ask, put_model

BARE = "/marram-test/ml/model"  # a DestinationPath that no machine has
ROUTES = [subscription("local", "try/vandal", "function:vandal")]
REFUSED = {"EROFS", "EACCES", "ENOENT"}  # not there at all is refused, too


def vandals(id: str, uri: str, **more: Any) -> dict[str, Any]:
    """A group of the vandal with one model; `more` as `function` takes it."""
    return {
        "DeploymentId": id,
        "Resources": [resource(uri, destination=more.pop("destination", BARE))],
        "Functions": [function("vandal", models=("model",), **more)],
        "Subscriptions": ROUTES,
    }


def attempt(site: Site, **event: Any) -> dict[str, Any]:
    with site.device() as device:
        answer: dict[str, Any] = json.loads(ask(device, "try/vandal", event, "attempt").payload)
    assert "error" not in answer, answer
    return answer


def test_a_model_to_be_read_cannot_be_written_on_any_way(site: Site) -> None:
    made = put_model(site, 1)
    with site.core() as core:
        core.wait_linked()
        last = core.deploy(vandals("v1", made["uri"]))
        assert not [text for text in last["warnings"] if "the function vandal" in text], last["warnings"]
        store = Objects(core.state)
        hex = made["digest"].removeprefix("sha256:")
        object = store.ref(hex)
        ways = [f"$AWS_GG_RESOURCE_PREFIX{BARE}/model.onnx", f"{BARE}/model.onnx", str(object.tree / "model.onnx")]
        around = [
            str(object.tree.parent / "manifest.json"),
            str(core.state / "current" / "new"),
            str(core.state / "new"),
            f"../../objects/{hex}/tree/model.onnx",
            f"/proc/{core.process.pid if core.process else 0}/root{object.tree}/model.onnx",
        ]
        answer = attempt(site, write=[*ways, *around, "mine.txt", "$HOME/mine.txt"], read=[f"{BARE}/model.onnx"])
        written = answer["written"]
        assert {path: written[path] for path in (*ways, *around) if written[path] not in REFUSED} == {}
        assert written["mine.txt"] == written["$HOME/mine.txt"] == "written"
        assert answer["read"][f"{BARE}/model.onnx"], "the bare path does not lead to the model"
        store.verify(hex)
        assert "own view of the files: none" not in core.log.read_text()
    assert not Path(BARE).parent.parent.exists(), "the host's own file system was changed"


def test_a_bare_path_that_the_host_uses_is_left_alone_and_said(site: Site) -> None:
    made = put_model(site, 1)
    taken = site.directory / "taken"
    taken.mkdir()
    (taken / "mine").write_text("the host's")
    with site.core() as core:
        core.wait_linked()
        document = vandals("v1", made["uri"], destination=str(taken))
        owned = document["Resources"][0]["ResourceDataContainer"]["S3MachineLearningModelResourceData"]
        owned["OwnerSetting"] = {"GroupOwner": str(os.getegid()), "GroupPermission": "ro"}
        environment = document["Functions"][0]["FunctionConfiguration"]["Environment"]
        environment["Execution"] = {"IsolationMode": "NoContainer"}  # a container has a /tmp of its own
        environment["ResourceAccessPolicies"] = [{"ResourceId": "model"}]
        last = core.deploy(document)
        assert any(f"the function vandal: {taken} is found below" in text for text in last["warnings"])
        answer = attempt(site, read=[f"{taken}/mine"])
        assert answer["read"] == {f"{taken}/mine": "the host's"}


def test_a_bare_path_keeps_its_version_when_the_hosts_link_turns(site: Site) -> None:
    made = put_model(site, 1)
    place = site.directory / "ml" / "model"
    with site.core(policy={"destinations": [str(place.parent)]}) as core:
        core.wait_linked()
        core.deploy(vandals("v1", made["uri"], destination=str(place)))
        assert (place / "model.onnx").exists()
        (core.state / "current").unlink()
        assert not place.exists()
        read = attempt(site, read=[f"{place}/model.onnx"], write=[f"{place}/model.onnx"])
        assert read["read"][f"{place}/model.onnx"]
        assert read["written"][f"{place}/model.onnx"] in REFUSED


def owned(uri: str, group: str, permission: str) -> dict[str, Any]:
    made = resource(uri, destination=BARE)
    owner = {"GroupOwner": group, "GroupPermission": permission}
    made["ResourceDataContainer"]["S3MachineLearningModelResourceData"]["OwnerSetting"] = owner
    return made


def test_what_a_function_changes_is_its_own_and_stays(site: Site) -> None:
    made = put_model(site, 1)
    hex = made["digest"].removeprefix("sha256:")
    policies = [{"ResourceId": "model", "Permission": "rw"}]
    reader = {**function("scores", models=("model",))}
    document = vandals("v1", made["uri"])
    document["Resources"] = [owned(made["uri"], "4242", "rw")]
    document["Functions"][0]["FunctionConfiguration"]["Environment"]["ResourceAccessPolicies"] = policies
    document["Functions"].append(reader)
    own, prefixed = f"{BARE}/own.txt", f"$AWS_GG_RESOURCE_PREFIX{BARE}/own.txt"
    with site.core() as core:
        core.wait_linked()
        core.deploy(document)
        answer = attempt(site, write=[own, prefixed, f"$HOME/../../objects/{hex}/tree/model.onnx"])
        assert list(answer["written"].values())[:2] == ["written"] * 2
        assert list(answer["written"].values())[2] in REFUSED
        core.stop()
        core.start()
        core.wait_ready("vandal", "scores")
        core.wait_linked()
        assert attempt(site, read=[own])["read"][own] == "vandal was here\n" * 2
        Objects(core.state).verify(hex)
        copy = core.state / "overlays" / "vandal" / "model" / hex
        assert (copy / "own.txt").exists()
        if os.geteuid() == 0:
            assert (copy / "model.onnx").stat().st_gid == 4242
        second = put_model(site, 2, key="second.tar.gz")
        for number in range(2, 6):  # until the first group is no longer kept
            core.deploy({**document, "DeploymentId": f"v{number}", "Resources": [owned(second["uri"], "4242", "rw")]})
        wait_until(lambda: not copy.exists(), "the copy to go with its version")


def test_the_owners_group_is_given_to_the_worker(site: Site) -> None:
    made = put_model(site, 1)
    document = vandals("v1", made["uri"])
    with site.core() as core:
        core.wait_linked()
        last = core.deploy({**document, "Resources": [owned(made["uri"], "4242", "ro")]})
        given = 4242 in attempt(site)["groups"]
        said = any("the function vandal: it does not get the group 4242" in text for text in last["warnings"])
        assert (given, said) == ((True, False) if os.geteuid() == 0 else (False, True))
        unknown = {**document, "DeploymentId": "v2", "Resources": [owned(made["uri"], "no-such-group", "ro")]}
        last = core.deploy(unknown, expect="FAILED")
        assert last["reason"]["code"] == "GROUP_UNKNOWN"
        assert "groupadd no-such-group" in json.dumps(last["reason"])


def local(id: str, kind: str, **data: Any) -> dict[str, Any]:
    return {"Id": id, "Name": id, "ResourceDataContainer": {f"Local{kind}ResourceData": data}}


def with_local(id: str, *resources: tuple[dict[str, Any], str]) -> dict[str, Any]:
    policies = [{"ResourceId": each["Id"], "Permission": permission} for each, permission in resources]
    made = function("vandal")
    made["FunctionConfiguration"]["Environment"]["ResourceAccessPolicies"] = policies
    return {
        "DeploymentId": id,
        "Resources": [each for each, _ in resources],
        "Functions": [made],
        "Subscriptions": ROUTES,
    }


def test_volumes_and_devices_are_there_as_the_document_says(site: Site) -> None:
    shared, kept = site.directory / "srv" / "shared", site.directory / "srv" / "kept"
    for each in (shared, kept):
        each.mkdir(parents=True)
        (each / "text").write_text("of the core\n")
    if os.geteuid() == 0:
        for each in (shared, shared / "text"):
            os.chown(each, -1, 4243)
            each.chmod(each.stat().st_mode | 0o070)
    auto = {"AutoAddGroupOwner": True}
    volumes = [
        (local("shared", "Volume", SourcePath=str(shared), DestinationPath="/v/rw", GroupOwnerSetting=auto), "rw"),
        (local("kept", "Volume", SourcePath=str(kept), DestinationPath="/v/ro"), "ro"),
        (local("null", "Device", SourcePath="/dev/null"), "rw"),
    ]
    with site.core(policy={"local": [f"{site.directory}/srv/*", "/dev/null"]}) as core:
        core.wait_linked()
        last = core.deploy(with_local("v1", *volumes))
        assert not [text for text in last["warnings"] if "the function vandal" in text], last["warnings"]
        ro = ["/v/ro/text", "$AWS_GG_RESOURCE_PREFIX/v/ro/text", str(kept / "text")]
        answer = attempt(site, read=["/v/ro/text"], write=["/v/rw/text", "/dev/null", *ro])
        assert answer["read"]["/v/ro/text"] == "of the core\n"
        assert answer["written"].pop("/v/rw/text") == answer["written"].pop("/dev/null") == "written"
        assert set(answer["written"].values()) <= REFUSED
        assert os.geteuid() != 0 or 4243 in answer["groups"]
        assert (shared / "text").read_text() == "of the core\nvandal was here\n"
        assert (kept / "text").read_text() == "of the core\n"


def test_what_is_not_there_or_not_allowed_fails(site: Site) -> None:
    folder = site.directory / "srv"
    folder.mkdir()
    (folder / "link").symlink_to("/var")
    (folder / "file").write_text("no directory")

    def volume(name: str) -> tuple[dict[str, Any], str]:
        return local("v", "Volume", SourcePath=name, DestinationPath="/v"), "ro"

    with site.core(policy={"local": [f"{folder}/*"]}) as core:
        core.wait_linked()
        for number, (name, status, code) in enumerate(
            [
                (f"{folder}/gone", "FAILED", "LOCAL_RESOURCE_MISSING"),
                (f"{folder}/file", "FAILED", "LOCAL_RESOURCE_MISSING"),
                (f"{folder}/link", "FAILED", "LOCAL_RESOURCE_ELSEWHERE"),
                ("/var/lib", "REJECTED", "NOT_ALLOWED"),
            ]
        ):
            last = core.deploy(with_local(f"v{number}", volume(name)), expect=status)
            assert last["reason"]["code"] == code, last
        assert 'local: ["/var/lib"]' in last["reason"]["message"]


NARROW = """
import ctypes, os, sys
sys.path.insert(0, {path!r})
from functions import mounts
if {no_namespaces!r}:
    mounts.CLONE_NEWNS = mounts.CLONE_NEWUSER = -1  # no kernel knows these flags: as on a machine that allows neither
libc = ctypes.CDLL(None)
libc.prctl(1, 9)
seen = mounts.enter({asked!r})
signal = ctypes.c_int()
libc.prctl(2, ctypes.byref(signal))
print(seen.tier, signal.value, len(seen.warnings))
"""


def enter(tmp_path: Path, no_namespaces: bool) -> str:
    state = tmp_path / "state"
    for each in ("objects/aa/tree", "run", "home"):
        (state / each).mkdir(parents=True, exist_ok=True)
    asked = {
        "read_only": [str(state), str(state / "objects")],
        "writable": [str(state / "home")],
        "shown": [[str(state / "objects/aa/tree"), BARE, False]],
        "stage": str(state / "run"),
    }
    code = NARROW.format(path=str(Path(__file__).parent.parent), asked=asked, no_namespaces=no_namespaces)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_view_leaves_the_end_with_the_agent_as_it_is(tmp_path: Path) -> None:
    assert enter(tmp_path, no_namespaces=False) in ("namespace 9 0\n", "user namespace 9 0\n")


def test_a_machine_without_namespaces_says_so_and_runs(tmp_path: Path) -> None:
    assert enter(tmp_path, no_namespaces=True) == "none 9 2\n"
