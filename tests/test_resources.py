"""What a function may do with its resources, with a real agent: what it may only read, it cannot write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.deployment.objects import Objects
from tests.agent_kit import function, resource, subscription
from tests.conftest import Site
from tests.test_main_job import ask, put_model

BARE = "/marram-test/ml/model"  # a DestinationPath that no machine has
ROUTES = [subscription("local", "try/vandal", "function:vandal")]
REFUSED = {"EROFS", "EACCES"}


def vandals(id: str, uri: str, **more: Any) -> dict[str, Any]:
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
        assert "own view of the files: namespace" in core.log.read_text() or (
            "own view of the files: user namespace" in core.log.read_text()
        )
    assert not Path(BARE).parent.parent.exists(), "the host's own file system was changed"


def test_a_bare_path_that_the_host_uses_is_left_alone_and_said(site: Site) -> None:
    made = put_model(site, 1)
    taken = site.directory / "taken"
    taken.mkdir()
    (taken / "mine").write_text("the host's")
    with site.core() as core:
        core.wait_linked()
        last = core.deploy(vandals("v1", made["uri"], destination=str(taken)))
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
