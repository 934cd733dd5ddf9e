"""A model of every runtime in one running agent: deployed by a document, asked over MQTT, swapped under load.

The models are two networks trained on the watches' recordings, in the formats of all five runtimes; what must come back
is what each library gives by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from agent.archive import pack
from agent.demo.formats import write_neo, write_onnx
from functions.runtimes.calling_home import stay_home
from tests.agent_kit import BUCKET, Core, function, resource, subscription
from tests.conftest import Site
from tests.load_kit import Load
from tests.runtimes_kit import FEATURES, ROOT, python_of, recordings, run_in, save_network, trained
from tests.tflite_kit import write_tflite

RUNTIMES = ("dlr", "onnx", "litert", "tensorflow", "mxnet")
SHAPES = {"shapes": {"data": [1, FEATURES]}}


class Version(NamedTuple):
    """One network as a package for each runtime, with what the libraries give for the recordings."""

    packages: Mapping[str, Path]
    expected: Mapping[str, Any]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    root = tmp_path_factory.mktemp("versions")
    arguments: dict[str, list[Path]] = {"tensorflow": [], "mxnet": []}
    for k in range(2):
        network = save_network(root / f"network-{k}.npz", trained(k))
        for name, given in arguments.items():
            given += [network, root / f"{name}-{k}"]
    with ThreadPoolExecutor() as together:  # most of it is the libraries' import
        list(together.map(lambda name: run_in(name, f"{name}_models.py", *arguments[name]), arguments))
    return [_version(root, k) for k in range(2)]


def _version(root: Path, k: int) -> Version:
    layers = trained(k).layers
    write_neo(root / f"dlr-{k}", layers)
    write_onnx(root / f"onnx-{k}" / "model.onnx", layers)
    write_tflite(root / f"litert-{k}" / "model.tflite", layers)
    formats = {"tensorflow": ("frozen", "saved")[k], "mxnet": ("module", "gluon")[k]}
    packages = {name: root / f"{name}-{k}" / formats.get(name, "") for name in RUNTIMES}
    expected = {name: np.load(root / f"{name}-{k}" / "expected.npz")[formats[name]] for name in formats}
    return Version(packages, {**expected, **_by_hand(packages)})


def _by_hand(packages: Mapping[str, Path]) -> dict[str, Any]:
    """What dlr, ONNX Runtime and LiteRT themselves give."""
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    stay_home()
    from dlr.dlr_model import DLRModelImpl

    rows = recordings()[0][:, None, :]
    neo = DLRModelImpl(str(packages["dlr"]))
    session = onnxruntime.InferenceSession(packages["onnx"] / "model.onnx", providers=["CPUExecutionProvider"])
    interpreter = Interpreter(str(packages["litert"] / "model.tflite"))
    interpreter.allocate_tensors()
    [given], [taken] = interpreter.get_input_details(), interpreter.get_output_details()

    def lite(x: Any) -> Any:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(taken["index"])

    found = {
        "dlr": [neo.run({"data": x})[0] for x in rows],
        "onnx": [session.run(None, {"data": x})[0] for x in rows],
        "litert": [lite(x) for x in rows],
    }
    return {name: np.concatenate(each) for name, each in found.items()}


def group(site: Site, id: str, network: Version) -> tuple[dict[str, Any], dict[str, str]]:
    """A group of an endpoint for each runtime, and the digest of each one's package.

    No document says where TensorFlow and MXNet are; that of LiteRT and TensorFlow does not even say the runtime.
    """
    resources, functions, routes, digests = [], [], [], {}
    for name, tree in network.packages.items():
        made = pack(tree, site.directory / f"{id}-{name}.tar.gz")
        uri = site.s3.put(BUCKET, f"{id}/{name}.tar.gz", Path(made["archive"]).read_bytes())
        stated = {} if name in ("litert", "tensorflow") else {"Runtime": name}
        options = {"Options": SHAPES} if name == "mxnet" else {}
        resources.append(resource(uri, id=f"model-{name}", destination=None, **stated, **options))
        functions.append(function(name, arn="marram:model", models=(f"model-{name}",), Timeout=30))
        routes.append(subscription("local", f"in/{name}", f"function:{name}"))
        digests[name] = made["digest"]
    return {"DeploymentId": id, "Resources": resources, "Functions": functions, "Subscriptions": routes}, digests


def event(n: int) -> dict[str, Any]:
    x = recordings()[0][n % len(recordings()[0])]
    return {"inputs": [{"name": "data", "shape": [1, FEATURES], "datatype": "FP32", "data": x.tolist()}]}


@pytest.fixture
def core(site: Site) -> Iterator[Core]:
    """A core whose policy names the environments as the runtimes are called."""
    interpreters = {name: python_of(name) for name in ("tensorflow", "mxnet")}
    with site.core(policy={"interpreters": interpreters}) as core:
        core.wait_linked()
        yield core


def test_every_runtime_answers_over_mqtt_as_its_library_by_hand_and_is_swapped_under_load(site, core, versions):
    documents = [group(site, f"v{k}", each) for k, each in enumerate(versions)]
    core.deploy(documents[0][0])
    done = threading.Event()
    loads = {name: Load(site.device(f"device-{name}"), f"in/{name}", event, window=4, rate=40) for name in RUNTIMES}

    def run(load: Load) -> None:
        while not done.is_set():
            load.run(20)
        load.run(20)

    threads = [threading.Thread(target=run, args=(load,)) for load in loads.values()]
    for thread in threads:
        thread.start()
    try:
        core.deploy(documents[1][0])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    for name, load in loads.items():
        told = {
            digests[name]: version.expected[name] for (_, digests), version in zip(documents, versions, strict=True)
        }
        seen = set()
        assert len(load.answers) == load.count
        assert load.duplicates() == 0
        for request, [answer] in load.answers.items():
            n = int(request.rpartition("-")[2])
            [output] = answer["outputs"]
            expected = told[answer["model_version"]][n % len(recordings()[0])]
            np.testing.assert_allclose(output["data"], expected, atol=1e-5, err_msg=f"{name} {request}")
            seen.add(answer["model_version"])
        assert seen == set(told), f"{name} answered with both versions"


def test_a_model_for_another_version_of_its_runtime_is_refused_and_the_old_one_serves_on(site, core, versions):
    document, _ = group(site, "v0", versions[0])
    chosen = [each for each in document["Resources"] if each["Id"] == "model-onnx"]
    small = {
        **document,
        "Resources": chosen,
        "Functions": [each for each in document["Functions"] if each["Id"] == "onnx"],
        "Subscriptions": [each for each in document["Subscriptions"] if each["Target"] == "function:onnx"],
    }
    core.deploy(small)
    chosen[0]["Marram"]["RuntimeVersion"] = "1.8"
    last = core.deploy({**small, "DeploymentId": "v1"}, expect="FAILED")
    assert last["reason"]["code"] == "RUNTIME_VERSION_MISMATCH"
    assert "requires onnx 1.8, and" in last["reason"]["message"]
    assert f"has onnx {version('onnxruntime')}" in last["reason"]["message"]
    load = Load(site.device(), "in/onnx", event)
    load.run(5)
    assert all("outputs" in answer for [answer] in load.answers.values())


def test_a_package_says_what_it_requires_and_its_recording_takes_the_runtimes_options(site, core, versions, tmp_path):
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps([{"data": recordings()[0][:1].tolist()}]))
    tree, archive = versions[0].packages["mxnet"], tmp_path / "mxnet.tar.gz"
    command = [sys.executable, "-m", "agent", "package", str(tree), "--output", str(archive)]
    command += ["--health", str(samples), "--interpreter", python_of("mxnet"), "--options", json.dumps(SHAPES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Health check: 1 requests" in done.stdout, done.stderr

    tree, archive = versions[0].packages["onnx"], tmp_path / "onnx.tar.gz"
    command = [sys.executable, "-m", "agent", "package", str(tree), "--output", str(archive), "--requires"]
    done = subprocess.run([*command, "runtime=new"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, "REQUIREMENT_INVALID" in done.stderr) == (78, True)
    done = subprocess.run([*command, "runtime=1.8"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    document = {
        "DeploymentId": "old",
        "Resources": [resource(site.s3.put(BUCKET, "onnx.tar.gz", archive.read_bytes()), id="model-onnx")],
        "Functions": [function("onnx", arn="marram:model", models=("model-onnx",))],
        "Subscriptions": [],
    }
    last = core.deploy(document, expect="FAILED")
    assert last["reason"]["code"] == "RUNTIME_VERSION_MISMATCH"
    assert "requires onnx 1.8, and" in last["reason"]["message"]
