"""What goes wrong with the bare libraries, shown on them, and that it does not go wrong in a worker."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.demo.formats import write_neo
from functions.runtimes.base import ModelInputError
from functions.runtimes.loading import load
from tests.runtimes_kit import python_of, recordings
from tests.test_runtimes import site_package
from tests.tflite_kit import write_quantised, write_tflite
from tests.worker_kit import WorkerChild, by_hand, function_config, model_config, network, write_function

ROOT = Path(__file__).parent.parent
SMALL, LARGE = network((16, 8, 3), seed=1), network((16, 32, 3), seed=2)
PREDICT = "def handler(e, c): return c.model().predict({'data': [[0.5] * 16]})\n"
# dlr by itself, but for its calls home, of which another test is.
BARE_DLR = """
import sys, os, threading
import numpy as np
from functions.runtimes.calling_home import stay_home
stay_home()
from dlr.dlr_model import DLRModelImpl, DLRError
X = np.full((1, 16), 0.5, np.float32)
"""


def bare(code: str, *arguments: object, python: str = sys.executable, **environment: str) -> str:
    """What a program prints that uses a library as it is."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}
    command = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("given", "held"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnx_runtime_sends_no_telemetry_unless_the_function_wants_it(given: dict[str, str], held: str) -> None:
    code = """
import os
from functions.runtimes import onnx
onnx.version()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    assert bare(code, **given).strip() == held


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pitfalls")
    for name, layers in (("small", SMALL), ("large", LARGE)):
        write_neo(root / name, layers)
        write_tflite(root / f"lite-{name}" / "model.tflite", layers)
    return {path.name: path for path in root.iterdir()}


# -- dlr --------------------------------------------------------------------------------------------------------------


def test_a_link_that_is_turned_gives_the_old_code_with_new_weights(trees, tmp_path):
    code = (
        BARE_DLR
        + """
link, other = sys.argv[1:]
first = DLRModelImpl(link)
os.unlink(link)
os.symlink(other, link)
print(*DLRModelImpl(link).run({"data": X})[0][0])
"""
    )
    (tmp_path / "current").symlink_to(trees["small"])
    right = by_hand(LARGE, [[0.5] * 16])[0]
    printed = bare(code, tmp_path / "current", trees["large"])
    assert not np.allclose([float(word) for word in printed.split()], right, atol=1e-3)

    (tmp_path / "ours").symlink_to(trees["small"])
    first = load("net", str(tmp_path / "ours"), "dlr", {})
    (tmp_path / "ours").unlink()
    (tmp_path / "ours").symlink_to(trees["large"])
    second = load("net", str(tmp_path / "ours"), "dlr", {})
    np.testing.assert_allclose(second.predict({"data": [[0.5] * 16]})["probabilities"][0], right, atol=1e-5)
    assert first is not second


def in_threads(predict: Any, layers: Any, count: int) -> int:
    """How many of two threads' predictions are wrong."""
    wrong: list[bool] = []

    together = threading.Barrier(2)

    def run(value: float) -> None:
        x = np.full((1, 16), value, np.float32)
        expected = by_hand(layers, x)
        together.wait()
        found = [np.array(predict({"data": x})) for _ in range(count)]
        wrong.extend(not np.allclose(each, expected, atol=1e-4) for each in found)

    threads = [threading.Thread(target=run, args=(value,)) for value in (0.5, -0.5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 2 * count
    return sum(wrong)


def test_two_threads_on_one_model_of_dlr_get_each_others_results(trees):
    code = (
        BARE_DLR
        + """
from tests.test_runtimes_pitfalls import LARGE, in_threads
model = DLRModelImpl(sys.argv[1])
print(max(in_threads(lambda inputs: model.run(inputs)[0], LARGE, 500) for _ in range(20)))
"""
    )
    assert int(bare(code, trees["large"]).split()[-1]) > 0
    ours = load("net", str(trees["large"]), "dlr", {})
    assert in_threads(lambda inputs: ours.predict(inputs)["probabilities"], LARGE, 500) == 0


def test_an_input_that_is_missing_is_the_last_one_and_an_error_has_no_text(trees, tmp_path):
    code = (
        BARE_DLR
        + """
model = DLRModelImpl(sys.argv[1])
given = model.run({"data": X})[0]
print((given == model.run({})[0]).all())
try:
    DLRModelImpl(sys.argv[2])
except DLRError as error:
    print(repr(str(error)))
"""
    )
    broken = Path(shutil.copytree(trees["small"], tmp_path / "broken"))
    (broken / "manifest.json").write_text("{}")
    assert bare(code, trees["small"], broken).split() == ["True", "''"]
    ours = load("net", str(trees["small"]), "dlr", {})
    with pytest.raises(ModelInputError, match='"data" is missing'):
        ours.predict({})
    with pytest.raises(Exception, match=r"manifest\.json"):
        load("net", str(broken), "dlr", {})


@pytest.fixture
def silence() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        server.settimeout(60)
        yield server


def dlr_that_calls(folder: Path) -> Path:
    """A folder to import dlr from, with all that it needs to call home, and no consent of earlier runs."""
    package = Path(shutil.copytree(site_package("dlr"), folder / "dlr"))
    (package / "counter" / "ccm_config.json").unlink(missing_ok=True)
    (folder / "distro.py").write_text("from pip._vendor.distro import *\n")
    return folder


def test_dlr_calls_home_and_hangs_where_nobody_answers(trees, tmp_path, silence):
    address = f"http://127.0.0.1:{silence.getsockname()[1]}"
    proxies = {"http_proxy": address, "https_proxy": address}
    code = "import sys, dlr; dlr.DLRModel(sys.argv[1]); print('loaded', flush=True)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(dlr_that_calls(tmp_path / "bare")), **proxies}
    command = [sys.executable, "-c", code, str(trees["small"])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        connection, _ = silence.accept()
        with connection:  # which ends the wait as soon as it is closed
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
            process.wait()
        assert process.stdout is not None
        assert b"loaded" not in process.stdout.read()

    source = f"import sys; sys.path.insert(0, {str(dlr_that_calls(tmp_path / 'ours'))!r})\nimport dlr\n{PREDICT}"
    config = function_config(write_function(tmp_path / "code", source), **model_config(trees["small"]))
    with WorkerChild(config, environment=proxies) as child:
        child.ready()
        assert len(child.ask({}).json["probabilities"][0]) == 3
        assert not select.select([silence], [], [], 0)[0], "it called"


def test_a_worker_with_dlr_needs_no_network_and_says_nothing_of_it(trees, tmp_path):
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec unshare -rn {sys.executable} "$@"\n')
    python.chmod(0o755)
    source = f"import sys; sys.path.insert(0, {str(dlr_that_calls(tmp_path / 'site'))!r})\nimport dlr\n{PREDICT}"
    config = function_config(write_function(tmp_path / "code", source), **model_config(trees["small"]))
    with WorkerChild(config, interpreter=str(python)) as child:
        child.ready()
        assert len(child.ask({}).json["probabilities"][0]) == 3
        for word in ("api", "phone", "AWS", "error", "Traceback"):
            assert word not in child.output


# A forest as Treelite's compiler writes it for libdlr, without its wrapping; {trees} are statements that add to `sum`.
FOREST = """
#include <stddef.h>
union Entry {{ int missing; float fvalue; int qvalue; }};
size_t get_num_output_group(void) {{ return 1; }}
size_t get_num_feature(void) {{ return {features}; }}
const char *get_pred_transform(void) {{ return "identity"; }}
float get_sigmoid_alpha(void) {{ return 1; }}
float get_global_bias(void) {{ return 0; }}
float predict(union Entry *data, int margin) {{ float sum = 0; {trees} return sum; }}
"""
STUMP = "sum += (data[{f}].missing == -1 || data[{f}].fvalue < (float){t}) ? (float){low} : (float){high};"


def boosted(x: Any, y: Any, count: int) -> list[tuple[int, float, float, float]]:
    """Stumps (feature, threshold, value below, value above) fitted one after the other to what is left of `y`."""
    left, found = y.astype(np.float64), []
    for _ in range(count):
        tried = []
        for f in range(x.shape[1]):
            for t in np.quantile(x[:, f], (0.25, 0.5, 0.75)):
                below = x[:, f] < np.float32(t)
                values = left[below].mean() if below.any() else 0.0, left[~below].mean() if (~below).any() else 0.0
                tried.append((((left - np.where(below, *values)) ** 2).sum(), f, float(np.float32(t)), *values))
        _, f, t, low, high = min(tried)
        left = left - np.where(x[:, f] < np.float32(t), low, high)
        found.append((f, t, low, high))
    return found


def test_forests_of_treelite_take_zero_for_missing_unless_told_otherwise(tmp_path):
    """Stumps boosted on the recordings: whether the watch's wearer plays badminton."""
    x, labels = recordings()
    stumps = boosted(x, labels == labels.max(), 12)
    trees = " ".join(STUMP.format(f=f, t=t, low=low, high=high) for f, t, low, high in stumps)
    source = tmp_path / "model.c"
    source.write_text(FOREST.format(features=x.shape[1], trees=trees))
    (tmp_path / "forest").mkdir()
    library = str(tmp_path / "forest" / "compiled.so")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, str(source)], check=True)

    def by_hand_with(rows: Any, missing: Any) -> Any:
        votes = [np.where(missing(rows[:, f]) | (rows[:, f] < np.float32(t)), low, high) for f, t, low, high in stumps]
        return np.sum(votes, axis=0)

    with_gaps = x.copy()
    with_gaps[::2, stumps[0][0]], with_gaps[1::2, stumps[1][0]] = 0, np.nan
    bare_output = bare(
        BARE_DLR + "print(*DLRModelImpl(sys.argv[1]).run({'data': np.load(sys.argv[2])})[0].ravel())",
        tmp_path / "forest", _saved(tmp_path, x),
    )  # fmt: skip
    plain = load("net", str(tmp_path / "forest"), None, {})
    told = load("net", str(tmp_path / "forest"), None, {"missing": "nan"})
    got = plain.predict({"data": x})["output_0"].ravel()
    np.testing.assert_allclose(got, [float(word) for word in bare_output.split()[-len(x) :]], atol=1e-5)
    np.testing.assert_allclose(got, by_hand_with(x, lambda column: column == 0), atol=1e-5)
    assert np.mean((got > 0.5) == (labels == labels.max())) > 0.9
    got = told.predict({"data": with_gaps})["output_0"].ravel()
    np.testing.assert_allclose(got, by_hand_with(with_gaps, np.isnan), atol=1e-5)
    zeros = np.where(np.isnan(with_gaps), 1, with_gaps)
    got = plain.predict({"data": zeros})["output_0"].ravel()
    np.testing.assert_allclose(got, by_hand_with(zeros, lambda column: column == 0), atol=1e-5)


def _saved(folder: Path, x: Any) -> Path:
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


# -- LiteRT -----------------------------------------------------------------------------------------------------------


def test_litert_keeps_one_input_for_all_who_call(trees):
    """One caller's input is gone when another has set theirs; ours run one by one."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(trees["lite-large"] / "model.tflite"))
    interpreter.allocate_tensors()
    [given], [taken] = interpreter.get_input_details(), interpreter.get_output_details()
    mine, theirs = (np.full((1, 16), value, np.float32) for value in (0.5, -0.5))
    for x in (mine, theirs):
        interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    np.testing.assert_allclose(interpreter.get_tensor(taken["index"]), by_hand(LARGE, theirs), atol=1e-5)

    ours = load("net", str(trees["lite-large"]), "litert", {})
    assert in_threads(lambda inputs: ours.predict(inputs)["probabilities"], LARGE, 500) == 0


def test_quantised_tensors_are_converted_by_their_own_scales(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    (weights, bias), x = network((8, 4))[0], np.linspace(-3, 3, 8, dtype=np.float32)[None]
    write_quantised(tmp_path / "model.tflite", weights, bias, reach=4)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    [given], [taken] = interpreter.get_input_details(), interpreter.get_output_details()
    with pytest.raises(ValueError, match="FLOAT32"):
        interpreter.set_tensor(given["index"], x)
    scale, zero = given["quantization"]
    whole = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], whole)
    interpreter.invoke()
    raw = interpreter.get_tensor(taken["index"])
    out_scale, out_zero = taken["quantization"]

    ours = load("net", str(tmp_path), "litert", {})
    assert [(s.name, s.dtype) for s in (*ours.inputs, *ours.outputs)] == [("data", "float32"), ("scores", "float32")]
    got = ours.predict({"data": x})["scores"]
    np.testing.assert_allclose(got, (raw.astype(np.float32) - out_zero) * out_scale, atol=1e-5)
    np.testing.assert_allclose(got, x @ weights.T + bias, atol=3 * out_scale)
    for value in (1e9, -1e9):  # saturates rather than wrapping round
        assert np.isfinite(ours.predict({"data": np.full((1, 8), value)})["scores"]).all()
    with pytest.raises(ModelInputError, match="NaN"):
        ours.predict({"data": [[float("nan")] * 8]})
    as_it_is = load("net", str(tmp_path), "litert", {"raw": True})
    np.testing.assert_array_equal(as_it_is.predict({"data": whole})["scores"], raw)


# -- MXNet and TensorFlow ---------------------------------------------------------------------------------------------


def test_mxnet_refuses_the_engine_that_greengrass_documents():
    """That ours takes it is in test_runtimes_environments: its MXNet worker is started with that name."""
    command = [python_of("mxnet"), "-c", "import mxnet; mxnet.nd.ones(1).asnumpy()"]
    environment = {"PATH": os.environ["PATH"], "MXNET_ENGINE_TYPE": "NativeEngine"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Cannot find Engine NativeEngine" in done.stderr


def test_a_fork_after_a_session_of_tensorflow_hangs_the_child():
    """Ours are started by exec, and so are the processes that their functions start: test_runtimes_environments."""
    code = """
import os, select, signal
import numpy as np
import tensorflow as tf
v1 = tf.compat.v1
graph = tf.Graph()
with graph.as_default():
    x = v1.placeholder(tf.float32, [512, 512], "x")
    y = tf.matmul(x, x)
session = v1.Session(graph=graph)
one = np.ones((512, 512), np.float32)
session.run(y, {x: one})
mine, theirs = os.pipe()
pid = os.fork()
if pid == 0:
    session.run(y, {x: one})
    os.write(theirs, b"done")
    os._exit(0)
print("answered" if select.select([mine], [], [], 2)[0] else "hangs", flush=True)
os.kill(pid, signal.SIGKILL)
os._exit(0)
"""
    assert bare(code, python=python_of("tensorflow"), TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="") == "hangs\n"
