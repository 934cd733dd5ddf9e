"""`marram new`: what it writes passes its own test, is deployed as it stands, and answers over MQTT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mqtt_kit import Mosquitto, PlainClient, wait_until
from onnx import TensorProto, helper
from test_runtimes import write_graph
from worker_kit import network

from agent.demo.formats import write_onnx

MARRAM = Path(sys.executable).with_name("marram")


def marram(directory: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run([MARRAM, *words], cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def its_test_passes(directory: Path, folder: str, count: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert f"{count} passed" in done.stdout, done.stdout


def answer_over_mqtt(directory: Path, name: str, event: dict[str, Any]) -> Any:
    """Runs an agent on what was written, deploys the document and publishes the event."""
    with Mosquitto(directory / "broker") as broker:
        settings = yaml.safe_load((directory / "topics.yaml").read_text())
        settings["links"] = {"local": broker.url}
        (directory / "topics.yaml").write_text(yaml.safe_dump(settings))
        with (directory / "agent.log").open("wb") as log:
            agent = subprocess.Popen([MARRAM, "run"], cwd=directory, stdout=log, stderr=log)
        try:
            wait_until(lambda: (directory / "state" / "agent.sock").exists(), "the agent's socket", 60)
            last = marram(directory, "deploy", f"{name}.yaml", "--wait", "--json").splitlines()[-1]
            assert json.loads(last)["status"] == "SUCCEEDED", last
            inferred = json.loads(marram(directory, "infer", name, "--data", json.dumps(event)))
            device = PlainClient(broker.port, "device")
            device.subscribe(f"{name}/in/{name}")
            device.publish(f"{name}/in", json.dumps(event))
            answer = json.loads(device.wait_for(1)[0].payload)
            device.close()
        finally:
            agent.terminate()
            agent.wait(30)
    assert {key: value for key, value in inferred.items() if key != "meta"} == {
        key: value for key, value in answer.items() if key != "meta"
    }
    return answer


def test_a_function_with_the_model_that_comes_along(tmp_path):
    said = marram(tmp_path, "new", "wear", "--model", "onnx")
    for words in ("pytest functions/wear", "marram deploy wear.yaml --wait", "marram infer wear", "mosquitto_pub"):
        assert words in said
    its_test_passes(tmp_path, "functions/wear", 3)
    answer = answer_over_mqtt(tmp_path, "wear", {"data": [[40, 2], [80, 9]]})
    good, worn = answer["scores"]
    assert good[0] > 0.9 > 0.1 > worn[0]
    assert answer["meta"]["model"] == "wear-model"


def test_a_function_without_a_model(tmp_path):
    marram(tmp_path, "new", "mean-of-it")
    its_test_passes(tmp_path, "functions/mean-of-it", 2)
    assert answer_over_mqtt(tmp_path, "mean-of-it", {"values": [1, 2, 6]})["mean"] == 3


def test_a_function_for_a_model_of_the_users_own_names_its_inputs(tmp_path):
    write_onnx(tmp_path / "trained" / "model.onnx", network((5, 4, 2)))
    (tmp_path / "topics.yaml").write_text("core: c\nfunctions: [code, more]\npolicy: {sources: []}\n")
    made = json.loads(marram(tmp_path, "new", "mine", "--model", "trained", "--json"))
    assert made["event"] == {"data": [[0.0] * 5]}
    assert made["policy"] == f"file://{tmp_path}/models/*"
    assert (tmp_path / "code" / "mine" / "__init__.py").exists()
    assert "policy" in (tmp_path / "topics.yaml").read_text()
    its_test_passes(tmp_path, "code/mine", 3)
    document = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    [resource] = document["Resources"]
    assert resource["Marram"]["Digest"].startswith("sha256:")


def test_several_inputs_and_a_model_elsewhere(tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    here.mkdir()
    write_two_inputs(elsewhere)
    made = json.loads(marram(here, "new", "sum", "--model", str(elsewhere), "--json"))
    assert made["event"] == {"left": [[0.0, 0.0]], "right": [[0.0, 0.0]]}
    its_test_passes(here, "functions/sum", 3)


def write_two_inputs(directory: Path) -> None:
    directory.mkdir()
    left, right, y = ((name, TensorProto.FLOAT, [None, 2]) for name in ("left", "right", "y"))
    write_graph(directory / "model.onnx", [helper.make_node("Add", ["left", "right"], ["y"])], [left, right], [y])


@pytest.mark.parametrize("name", ["", "1a", "a b", "../a", "a" * 65, "a:b"])
def test_a_bad_name(tmp_path, name):
    assert "BAD_NAME" in marram(tmp_path, "new", name, code=78)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    marram(tmp_path, "new", "one")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "EXISTS" in marram(tmp_path, "new", "one", code=78)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_that_does_not_load_leaves_nothing(tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.onnx").write_bytes(np.arange(100, dtype="u1").tobytes())
    assert "MODEL_LOAD_FAILED" in marram(tmp_path, "new", "one", "--model", "bad", code=1)
    assert "NOT_A_DIRECTORY" in marram(tmp_path, "new", "one", "--model", "nothing", code=78)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]
