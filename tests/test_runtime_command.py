"""`marram runtime install` and `list`: on the environments that scripts/test made with it, and where it must fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.environments import libdlr
from agent.environments.policy import line_for
from agent.environments.recipes import RECIPES, fits, range_of, recipe_of
from tests.runtimes_kit import ENVIRONMENTS, python_of

OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"}


def marram(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    command = [sys.executable, "-m", "agent", "runtime", *map(str, arguments)]
    paths = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        command, cwd=cwd, env={**kept, **paths, **environment}, capture_output=True, text=True, check=False
    )


def settings(folder: Path, **policy: Any) -> Path:
    file = folder / "topics.yaml"
    links = {"local": {"url": "embedded"}, "cloud": "local"}
    file.write_text(yaml.safe_dump({"core": "c", "state": "state", "links": links, "policy": policy}))
    return file


def test_the_list_shows_versions_size_python_and_the_policys_names(tmp_path):
    config = settings(tmp_path, interpreters={"mxnet": python_of("mxnet"), "gone": "/nowhere/python"})
    done = marram("list", "--config", config, "--dir", ENVIRONMENTS, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {each["python"]: each for each in map(json.loads, done.stdout.splitlines())}
    mxnet, tensorflow = found[python_of("mxnet")], found[python_of("tensorflow")]
    assert mxnet["runtimes"] == {"mxnet": {"package": "mxnet", "version": "1.9.1"}}
    assert (mxnet["interpreters"], mxnet["problem"]) == (["mxnet"], None)
    assert mxnet["bytes"] > 100e6
    assert set(tensorflow["runtimes"]) == {"tensorflow"}
    assert (tensorflow["interpreters"], tensorflow["problem"]) == ([], None)
    assert "cannot be started" in found["/nowhere/python"]["problem"]
    assert {"dlr", "onnx", "litert"} <= set(found[sys.executable]["runtimes"])
    table = marram("list", "--config", config, "--dir", ENVIRONMENTS, cwd=tmp_path).stdout
    assert "mxnet 1.9.1" in table
    assert "not in policy" in table
    assert "warning: /nowhere/python" in table


def test_an_environment_is_made_beside_the_state_and_taken_away_where_there_is_no_network(tmp_path):
    config = settings(tmp_path, interpreters={"other": "/opt/python"})
    place = tmp_path / "state-runtimes" / "litert"
    done = marram("install", "litert", "--config", config, cwd=tmp_path, **OFFLINE)
    assert done.returncode == 1
    assert f"make {place}" in done.stderr
    assert "RUNTIME_INSTALL_FAILED" in done.stderr
    assert "package index cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not place.exists(), "what failed is taken away again"


def test_a_runtime_goes_into_an_environment_that_has_all_of_it_without_a_network(tmp_path):
    done = marram("install", "onnx", "--into", sys.prefix, cwd=tmp_path, **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert f"is installed for {sys.prefix}/bin/python" in done.stdout


def test_the_line_that_the_policy_needs_keeps_what_it_has(tmp_path):
    config, python = (
        settings(tmp_path, interpreters={"mxnet": "envs/mxnet/bin/python"}),
        tmp_path / "tf" / "bin" / "python",
    )
    mxnet = tmp_path / "envs/mxnet/bin/python"
    assert line_for(config, "tensorflow", python) == f"interpreters: {{mxnet: {mxnet}, tensorflow: {python}}}"
    assert line_for(config, "mxnet", mxnet) is None
    assert line_for(tmp_path / "none.yaml", "onnx", python) == f"interpreters: {{onnx: {python}}}"


def test_a_python_that_does_not_fit_is_told_with_those_that_do(tmp_path):
    new = tmp_path / "python3.13"
    new.write_text("#!/bin/sh\necho 3 13\n")
    new.chmod(0o755)
    done = marram("install", "mxnet", "--dir", tmp_path, "--python", new, cwd=tmp_path)
    assert (done.returncode, "PYTHON_UNFIT" in done.stderr) == (1, True)
    assert f"3.10 to 3.11; {new} is Python 3.13" in done.stderr
    done = marram("install", "onnx", "--dir", tmp_path, "--python", tmp_path / "none", cwd=tmp_path)
    assert (done.returncode, "PYTHON_MISSING" in done.stderr) == (1, True)


def test_other_mistakes_are_told(tmp_path):
    done = marram("install", "onnx", "--into", tmp_path / "none", cwd=tmp_path)
    assert (done.returncode, "ENVIRONMENT_MISSING" in done.stderr) == (1, True)
    done = marram("install", "caffe", cwd=tmp_path)
    assert (done.returncode, "dlr" in done.stderr) == (2, True)
    done = marram("install", "onnx", cwd=tmp_path)
    assert (done.returncode, "SETTINGS_UNREADABLE" in done.stderr) == (78, True)


@pytest.mark.parametrize("runtime", RECIPES)
def test_recipes(runtime):
    recipe = recipe_of(runtime, "x86_64")
    assert fits(recipe, (3, 10))
    assert not fits(recipe, (3, 9))
    assert fits(recipe, (3, 13)) == (runtime != "mxnet")
    assert range_of(recipe) in ("3.10 or later", "3.10 to 3.11")
    assert recipe_of(runtime, "aarch64", ("own",)).packages == ("own",)
    assert recipe_of("tensorflow", "aarch64").packages == ("tensorflow",)


def test_a_libdlr_of_ones_own_is_put_where_dlr_looks(tmp_path, monkeypatch):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    own = tmp_path / "libdlr.so"
    own.write_bytes(b"built for this machine")

    def no_pip(command, text):
        raise AssertionError(command)

    libdlr.install_libdlr(python, libdlr.NONE, no_pip)
    assert not libdlr.place_of(python).exists()
    libdlr.install_libdlr(python, own, no_pip)
    assert (tmp_path / "venv" / "dlr" / "libdlr.so").read_bytes() == own.read_bytes()
    libdlr.install_libdlr(python, None, no_pip)  # one that is there stays
    monkeypatch.setattr(libdlr.platform, "machine", lambda: "armv7l")
    with pytest.raises(Exception, match=r"no ready .* for armv7l"):
        libdlr.install_libdlr(tmp_path / "other" / "bin" / "python", None, no_pip)
