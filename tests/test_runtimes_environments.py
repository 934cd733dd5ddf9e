"""TensorFlow and MXNet, each in its own environment: what a worker there gives is what the library gives by hand.

One worker a runtime loads and runs all the models of a test: these libraries take seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes_kit import FEATURES, python_of, recordings, run_in, save_network, trained
from tests.worker_kit import WorkerChild, bare_interpreter, function_config, model_config, write_function

# Loads a model, predicts with it, and tells either the outputs or the error.
TRY = """
import importlib.util, subprocess
from functions.errors import CodedError
from functions.runtimes.loading import load, warm_up
def handler(e, c):
    if "run" in e:
        return {"printed": subprocess.run(e["run"], capture_output=True, text=True, check=True).stdout}
    if "find" in e:
        return {"found": [name for name in e["find"] if importlib.util.find_spec(name)]}
    try:
        model = load("net", e["path"], e.get("runtime"), e["options"], e.get("requires"))
        warm_up("net", model)
        outputs = model.predict(e["inputs"])
    except CodedError as error:
        return {"code": error.code, "message": error.message}
    specs = [[s.name, s.shape, s.dtype] for s in (*model.inputs, *model.outputs)]
    return {"outputs": {k: v.tolist() for k, v in outputs.items()}, "specs": specs}
"""


class Library:
    """A runtime's models, what the library itself makes of them, and a worker to try them in."""

    def __init__(self, name: str, folder: Path) -> None:
        network = save_network(folder / "network.npz", trained())
        run_in(name, f"{name}_models.py", network, folder / "models")
        self.models = folder / "models"
        self.expected = dict(np.load(self.models / "expected.npz"))
        environment = {"MXNET_ENGINE_TYPE": "NativeEngine"} if name == "mxnet" else {}
        code = write_function(folder / "code", TRY)
        self.worker = WorkerChild(
            function_config(code, meta=False), interpreter=python_of(name), environment=environment
        )
        self.worker.ready()

    def tried(self, model: str, inputs: Any = None, requires: Any = None, **options: Any) -> dict[str, Any]:
        inputs = {"data": recordings()[0].tolist()} if inputs is None else inputs
        event = {"path": str(self.models / model), "options": options, "inputs": inputs, "requires": requires}
        return dict(self.worker.ask(event).json)

    def refused(self, model: str, **more: Any) -> tuple[str, str]:
        found = self.tried(model, **more)
        return found["code"], found["message"]


def _library(name: str, factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(name, factory.mktemp(name))
    with library.worker:
        yield library


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    yield from _library("tensorflow", tmp_path_factory)


@pytest.fixture(scope="module")
def mxnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    yield from _library("mxnet", tmp_path_factory)


# -- TensorFlow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["frozen", "saved"])
def test_tensorflow_gives_what_the_library_gives(tensorflow, model):
    found = tensorflow.tried(model)
    assert found["specs"] == [["data", [None, FEATURES], "float32"], ["probabilities", [None, 4], "float32"]]
    np.testing.assert_allclose(found["outputs"]["probabilities"], tensorflow.expected[model], atol=1e-5)
    np.testing.assert_allclose(tensorflow.expected[model], trained().scores(recordings()[0]), atol=1e-5)
    assert np.mean(np.argmax(found["outputs"]["probabilities"], 1) == recordings()[1]) > 0.9


def test_tensorflows_second_outputs_text_and_open_ranks(tensorflow):
    found = tensorflow.tried("split", {"x": [[1, 2, 3, 4]]})
    assert found["outputs"] == {"halves": [[1, 2]], "halves:1": [[3, 4]]}
    assert tensorflow.tried("split", {"x": [[1, 2, 3, 4]]}, outputs=["halves:1"])["outputs"] == {"halves:1": [[3, 4]]}
    assert tensorflow.tried("text", {"words": ["a", "four"]})["outputs"] == {"lengths": [1, 4]}
    code, message = tensorflow.refused("rankless", inputs={"x": [1]})
    assert (code, "Options: {shapes: {x:" in message) == ("MODEL_LOAD_FAILED", True)
    assert tensorflow.tried("rankless", {"x": [[1, 2]]}, shapes={"x": [None, 2]})["outputs"] == {"y": [[1, 2]]}


def test_a_checkpoint_is_refused_with_how_to_freeze_it(tensorflow):
    for model in ("checkpoint", "unfrozen"):
        code, message = tensorflow.refused(model)
        assert code == "MODEL_NOT_FROZEN"
        assert "freeze_graph" in message


def test_what_tensorflow_does_not_have_is_told_at_load(tensorflow):
    code, message = tensorflow.refused("frozen", device="gpu:1")
    assert (code, "GPU:1" in message, "CPU:0" in message) == ("DEVICE_UNAVAILABLE", True, True)
    assert "outputs" in tensorflow.tried("frozen", device="cpu", threads=2)
    assert tensorflow.refused("saved", signature="train")[0] == "MODEL_LOAD_FAILED"
    assert "serving_default" in tensorflow.refused("saved", signature="train")[1]
    code, message = tensorflow.refused("frozen", requires={"runtime": "1.15"})
    assert (code, "requires tensorflow 1.15, and" in message) == ("RUNTIME_VERSION_MISMATCH", True)


def test_a_worker_with_tensorflow_starts_other_processes(tensorflow):
    """A child that is forked off a process with a session hangs (see the pitfalls); workers and theirs are exec'd."""
    assert "outputs" in tensorflow.tried("frozen")
    found = tensorflow.worker.ask({"run": ["echo", "done"]}).json
    assert found == {"printed": "done\n"}


# -- MXNet ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["module", "gluon", "numpy"])
def test_mxnet_gives_what_the_library_gives(mxnet, model):
    """The engine is named as Greengrass V1 documents it, which MXNet itself refuses."""
    x, labels = recordings()
    found = mxnet.tried(model, shapes={"data": [None, FEATURES]})
    [name, shape, dtype] = found["specs"][1]
    assert (shape[0], dtype) == (None, "float32")
    np.testing.assert_allclose(found["outputs"][name], mxnet.expected[model], atol=1e-5)
    one = mxnet.tried(model, {"data": x[:1].tolist()}, shapes={"data": [1, FEATURES]})
    np.testing.assert_allclose(one["outputs"][name], mxnet.expected[model][:1], atol=1e-5)
    if model != "numpy":
        assert np.mean(np.argmax(found["outputs"][name], 1) == labels) > 0.9


def test_mxnet_asks_for_the_inputs_shapes_and_names_them(mxnet):
    code, message = mxnet.refused("module")
    assert (code, "Options: {shapes: {data: [" in message) == ("MODEL_LOAD_FAILED", True)
    code, message = mxnet.refused("module", shapes={"dta": [1, FEATURES]})
    assert "for data; it has dta" in message
    code, message = mxnet.refused("module", shapes={"data": [1, 7]})
    assert (code, "fc1_weight" in message) == ("MODEL_LOAD_FAILED", True)
    assert mxnet.refused("module", shapes={"data": "1x7"})[0] == "MODEL_LOAD_FAILED"
    assert mxnet.refused("module", shapes={"data": [1, FEATURES]}, dtypes={"data": "float31"})[0] == "MODEL_LOAD_FAILED"


def test_what_mxnet_does_not_have_is_told_at_load(mxnet):
    shapes = {"data": [None, FEATURES]}
    code, message = mxnet.refused("module", device="gpu", shapes=shapes)
    assert (code, "0 GPUs" in message) == ("DEVICE_UNAVAILABLE", True)
    code, message = mxnet.refused("newer", shapes=shapes)
    assert (code, "MXNet 2.0.0" in message, "MXNet 1.9.1" in message) == ("RUNTIME_VERSION_MISMATCH", True, True)
    code, message = mxnet.refused("module", shapes=shapes, requires={"runtime": "1.8", "numpy": "<1.24"})
    assert (code, "mxnet 1.9.1" in message) == ("RUNTIME_VERSION_MISMATCH", True)
    assert "outputs" in mxnet.tried("module", shapes=shapes, requires={"runtime": "1.9", "numpy": "==1.23.5"})


def test_mxnet_beside_a_newer_numpy_is_told(mxnet, tmp_path):
    python = bare_interpreter(tmp_path / "env", "msgpack", "numpy")
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    [packages] = Path(python_of("mxnet")).parent.parent.glob("lib/python*/site-packages")
    for name in ("mxnet", "requests", "graphviz", "urllib3", "idna", "certifi", "charset_normalizer"):
        (site / name).symlink_to(packages / name)
    folder = write_function(tmp_path / "code", "def handler(e, c): pass\n")
    config = function_config(
        folder, **model_config(mxnet.models / "module", options={"shapes": {"data": [1, FEATURES]}})
    )
    with WorkerChild(config, interpreter=python) as child:
        code, message = child.failed()
    assert (code, "marram runtime install mxnet" in message) == ("RUNTIME_INCOMPATIBLE", True)


def test_an_environment_sees_its_own_packages_and_nothing_of_the_agents(mxnet):
    names = ["agent", "functions", "paho", "boto3", "onnxruntime", "mxnet", "tests"]
    assert mxnet.worker.ask({"find": names}).json == {"found": ["functions", "mxnet"]}
