"""dlr, ONNX Runtime and LiteRT on real model files: what they give, what they refuse, and dlr's traps."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tflite_kit import write_tflite
from worker_kit import (
    WorkerChild,
    bare_interpreter,
    by_hand,
    function_config,
    model_config,
    network,
    write_function,
)

from agent.demo.formats import write_neo, write_onnx
from functions.errors import StartError
from functions.model_files import model_directory, runtimes_of
from functions.runtimes.base import ModelInputError, TensorSpec
from functions.runtimes.detect import detect
from functions.runtimes.loading import load, warm_up

LAYERS = network()
PREDICT = "def handler(e, c): return c.model().predict({'data': [e['x']]})\n"


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """Directories of one network in each format; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    write_neo(root / "dlr", LAYERS)
    write_onnx(root / "onnx" / "model.onnx", LAYERS)
    write_tflite(root / "litert" / "model.tflite", LAYERS)
    return {name: root / name for name in ("dlr", "onnx", "litert")}


def loaded(tree: Path, runtime: str | None = None, **options):
    return load("net", str(tree), runtime, options)


def refused(tree: Path, runtime: str | None = None, **options) -> tuple[str, str]:
    with pytest.raises(StartError) as caught:
        warm_up("net", loaded(tree, runtime, **options))
    return caught.value.code, caught.value.message


# -- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "hits"),
    [
        (["net-symbol.json", "net-0000.params"], ["mxnet"]),
        (["m.ckpt.index", "m.ckpt.data-00000-of-00001", "m.ckpt.meta", "checkpoint"], ["tensorflow"]),
        (["saved_model.pb", "variables", "assets"], ["tensorflow"]),
        (["net-symbol.json", "net-0010.params", "synset.txt"], ["mxnet"]),
        (["compiled.so", "compiled.params", "compiled_model.json", "compiled.meta", "libdlr.so"], ["dlr"]),
        (["compiled.so"], ["dlr"]),
        (["code.ro", "compiled.so"], ["dlr"]),
        (["libdlr.so"], []),
        (["compiled.params"], []),
        (["a.onnx"], ["onnx"]),
        (["a.onnx", "a.onnx.data"], ["onnx"]),
        (["a.tflite"], ["litert"]),
        (["saved_model.pb", "variables"], ["tensorflow"]),
        (["a.onnx", "a.tflite"], ["onnx", "litert"]),
        (["README"], []),
        ([], []),
    ],
)
def test_the_runtime_by_the_files(names, hits):
    assert runtimes_of(names) == hits


@pytest.mark.parametrize("names", [["a.onnx", "b.tflite"], ["notes.txt"], []])
def test_anything_but_one_hit_is_an_error_that_names_the_files(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StartError) as caught:
        detect(tmp_path)
    assert caught.value.code == "RUNTIME_UNKNOWN"
    assert "Runtime" in caught.value.message
    assert all(name in caught.value.message for name in names)


def test_a_folder_that_holds_nothing_but_the_model_is_entered_and_links_are_resolved(tmp_path):
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "m.onnx").touch()
    (tmp_path / "link").symlink_to("tree")
    assert model_directory(tmp_path / "link") == tmp_path / "tree" / "a" / "b"


def test_a_runtime_that_is_not_served_is_named(tmp_path):
    (tmp_path / "m.tflite").touch()
    code, message = refused(tmp_path, "caffe")
    assert code == "RUNTIME_UNKNOWN"
    assert '"caffe"' in message
    assert "dlr, onnx" in message


def test_a_tree_that_is_not_there(tmp_path):
    assert refused(tmp_path / "none")[0] == "MODEL_LOAD_FAILED"


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
def test_a_model_gives_what_numpy_gives(trees, runtime):
    model = loaded(trees[runtime])
    assert model.runtime == runtime
    rows = None if runtime == "onnx" else 1
    assert model.inputs == (TensorSpec("data", (rows, 16), "float32"),)
    assert model.outputs == (TensorSpec("probabilities", (rows, 3), "float32"),)
    warm_up("net", model)
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)
        [(name, y)] = model.predict({"data": x}).items()
        assert name == "probabilities"
        np.testing.assert_allclose(y, by_hand(LAYERS, x), atol=1e-5)
    model.close()


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
def test_an_output_is_not_changed_by_the_next_prediction(trees, runtime):
    model = loaded(trees[runtime])
    first = model.predict({"data": np.ones((1, 16), np.float32)})["probabilities"]
    kept = first.copy()
    model.predict({"data": -np.ones((1, 16), np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, ['"data" is missing']),
        ({"x": [[0.0] * 16]}, ['"data" is missing', '"x" is unknown']),
        ({"data": [[0.0] * 16], "x": 1}, ['"x" is unknown']),
        ({"data": [0.0] * 16}, ["[16]", "16]"]),
        ({"data": [[0.0] * 15]}, ["[1, 15]"]),
        ({"data": np.zeros((1, 16, 1), np.float32)}, ["[1, 16, 1]"]),
        ({"data": [[0.0] * 16, [0.0] * 15]}, ["is no array"]),
        ({"data": [["1.5"] * 16]}, ["float32 cannot hold"]),
        ({"data": [[None] * 16]}, ["float32 cannot hold"]),
        ({"data": [[1j] * 16]}, ["float32 cannot hold"]),
        ({"data": {"a": 1}}, ["float32 cannot hold"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_the_library_sees_them(trees, runtime, inputs, words):
    model = loaded(trees[runtime])
    with pytest.raises(ModelInputError) as caught:
        model.predict(inputs)
    assert caught.value.code == "BAD_INPUT"
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
def test_lists_whole_numbers_doubles_and_odd_layouts_are_taken(trees, runtime):
    model = loaded(trees[runtime])
    x = np.arange(16).reshape(1, 16)
    expected = by_hand(LAYERS, x)
    wide = np.zeros((1, 32), np.float32)
    wide[:, ::2] = x
    for value in (x.tolist(), x, x.astype(np.float64), x.astype(">f4"), x.astype(np.uint8), wide[:, ::2]):
        np.testing.assert_allclose(model.predict({"data": value})["probabilities"], expected, atol=1e-5)


def test_several_threads_on_one_model_get_their_own_results(trees):
    """Without a lock, dlr gives 30 to 100 % wrong results here, and says nothing."""
    model = loaded(trees["dlr"])
    wrong: list[bool] = []
    together = threading.Barrier(3)

    def run(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)
        expected = by_hand(LAYERS, x)
        together.wait()
        results = [model.predict({"data": x})["probabilities"] for _ in range(500)]
        wrong.extend(not np.allclose(y, expected, atol=1e-5) for y in results)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
def test_options_are_checked(trees, runtime):
    code, message = refused(trees[runtime], colour="red")
    assert (code, "`colour`" in message) == ("MODEL_LOAD_FAILED", True)


# -- ONNX Runtime -----------------------------------------------------------------------------------------------------


def write_graph(path: Path, nodes, inputs, outputs, initializers=()) -> None:
    def info(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(nodes, "g", [info(*i) for i in inputs], [info(*o) for o in outputs], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def test_any_number_of_rows_where_the_model_leaves_it_free(trees):
    x = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
    y = loaded(trees["onnx"], threads=2).predict({"data": x})["probabilities"]
    np.testing.assert_allclose(y, by_hand(LAYERS, x), atol=1e-5)


def test_whole_number_bool_and_text_inputs(tmp_path):
    kinds = {"i": TensorProto.INT8, "b": TensorProto.BOOL, "s": TensorProto.STRING}
    nodes = [helper.make_node("Identity", [name], [name + "_out"]) for name in kinds]
    tensors = [(name, kind, [2]) for name, kind in kinds.items()]
    write_graph(tmp_path / "m.onnx", nodes, tensors, [(n + "_out", k, s) for n, k, s in tensors])
    model = loaded(tmp_path)
    warm_up("net", model)
    good = {"i": [-128, 127], "b": [True, False], "s": ["a", "ü"]}
    got = model.predict(good)
    assert {name: got[name + "_out"].tolist() for name in kinds} == good
    for name, bad in (("i", [1.5, 2]), ("i", [0, 128]), ("b", [0, 1]), ("s", [1, 2]), ("i", [2**70, 0])):
        with pytest.raises(ModelInputError, match="cannot hold"):
            model.predict({**good, name: bad})


def test_two_onnx_files_need_the_option(trees, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(trees["onnx"] / "model.onnx", tmp_path / name)
    code, message = refused(tmp_path)
    assert (code, "a.onnx, b.onnx" in message) == ("MODEL_LOAD_FAILED", True)
    assert loaded(tmp_path, file="b.onnx").runtime == "onnx"
    assert refused(tmp_path, file="c.onnx")[0] == "MODEL_LOAD_FAILED"


def test_a_file_that_is_no_onnx_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
    code, message = refused(tmp_path)
    assert code == "MODEL_LOAD_FAILED"
    assert "m.onnx" in message


def test_a_model_that_fails_on_zeros_never_gets_ready(tmp_path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [3, -1])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    tensors = [("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, [3, "m"])]
    write_graph(tmp_path / "m.onnx", [node], *tensors, [shape])
    code, message = refused(tmp_path)
    assert code == "MODEL_WARM_UP_FAILED"
    assert "\n" not in message


def test_onnx_runtimes_threads_providers_and_levels(trees):
    x = np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    options = {
        "threads": 2, "inter_threads": 2, "spinning": True, "optimization": "basic",
        "providers": ["CPUExecutionProvider"], "provider_options": {"CPUExecutionProvider": {}},
        "session": {"session.set_denormal_as_zero": "1"},
    }  # fmt: skip
    y = loaded(trees["onnx"], **options).predict({"data": x})["probabilities"]
    np.testing.assert_allclose(y, by_hand(LAYERS, x), atol=1e-5)


@pytest.mark.parametrize(
    ("runtime", "options", "code", "words"),
    [
        ("onnx", {"providers": ["CUDAExecutionProvider"]}, "DEVICE_UNAVAILABLE", ["no CUDAExecutionProvider", "-gpu"]),
        ("onnx", {"providers": [1]}, "MODEL_LOAD_FAILED", ["a list of names"]),
        ("onnx", {"provider_options": {"CUDAExecutionProvider": {}}}, "MODEL_LOAD_FAILED", ["CUDAExecutionProvider"]),
        ("onnx", {"optimization": "most"}, "MODEL_LOAD_FAILED", ["all, extended, basic, none"]),
        ("onnx", {"threads": "2"}, "MODEL_LOAD_FAILED", ["a whole number is expected"]),
        ("onnx", {"spinning": 1}, "MODEL_LOAD_FAILED", ["true or false"]),
        ("dlr", {"device": "gpu"}, "MODEL_LOAD_FAILED", ['requires device type "cpu"']),
        ("dlr", {"device": "npu"}, "MODEL_LOAD_FAILED", ["cpu, gpu, opencl"]),
        ("dlr", {"device": "gpu:x"}, "MODEL_LOAD_FAILED", ["gpu:1"]),
        ("litert", {"delegate": "/no/libedgetpu.so.1"}, "DEVICE_UNAVAILABLE", ["/no/libedgetpu.so.1", "driver"]),
        ("litert", {"delegate": "libm.so.6"}, "DEVICE_UNAVAILABLE", ["libm.so.6"]),
        ("litert", {"raw": "yes"}, "MODEL_LOAD_FAILED", ["true or false"]),
    ],
)  # fmt: skip
def test_what_a_machine_or_a_runtime_does_not_have_is_told_at_load(trees, capfd, runtime, options, code, words):
    found, message = refused(trees[runtime], runtime, **options)
    assert found == code
    for word in words:
        assert word in message
    assert "Traceback" not in capfd.readouterr().err


def test_a_neo_model_for_a_gpu_on_a_machine_without_one(trees, tmp_path):
    tree = broken(trees, tmp_path)
    meta = (tree / "compiled.meta").read_text()
    (tree / "compiled.meta").write_text(meta.replace('"TargetDeviceType": "cpu"', '"TargetDeviceType": "gpu"'))
    code, message = refused(tree, "dlr", device="gpu")
    assert (code, "libdlr.so" in message) == ("DEVICE_UNAVAILABLE", True)


def test_litert_takes_any_number_of_rows_where_the_model_leaves_it_free(tmp_path):
    write_tflite(tmp_path / "m.tflite", LAYERS, batch=None)
    model = loaded(tmp_path, threads=2)
    assert model.inputs == (TensorSpec("data", (None, 16), "float32"),)  # the signature's name, not the tensor's
    for rows in (1, 7, 7, 2):
        x = np.random.default_rng(rows).normal(size=(rows, 16)).astype(np.float32)
        np.testing.assert_allclose(model.predict({"data": x})["probabilities"], by_hand(LAYERS, x), atol=1e-5)


def test_versions_that_the_model_requires(trees):
    warm_up("net", load("net", str(trees["onnx"]), None, {}, {"runtime": ">=1", "numpy": ">=1.23"}))
    warm_up("net", load("net", str(trees["dlr"]), None, {}, {"runtime": "1.10", "libdlr": "1.6"}))
    for tree, requires, words in (
        ("onnx", {"runtime": "<1"}, "requires onnx <1, and"),
        ("dlr", {"libdlr": "1.9"}, "has libdlr 1.6.0"),
        ("litert", {"numpy": "==1.23.5"}, "requires numpy ==1.23.5"),
    ):
        with pytest.raises(StartError) as caught:
            load("net", str(trees[tree]), None, {}, requires)
        assert caught.value.code == "RUNTIME_VERSION_MISMATCH"
        assert words in caught.value.message


# -- dlr's traps ------------------------------------------------------------------------------------------------------


def broken(trees, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trees["dlr"], tmp_path / "broken"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", b"{}", ["Found multiple *.json files", "manifest.json"]),
        ("other.so", b"", ["Found multiple model lib files", "other.so"]),
        ("compiled.params", b"x" * 64, ["Invalid parameters file format"]),
        ("compiled.so", b"x" * 64, ["invalid ELF header"]),
        ("compiled_model.json", b"{", ["Expect"]),
        ("compiled.meta", b'{"Requirements": {"TargetDeviceType": "gpu"}}', ['requires device type "gpu"']),
    ],
)
def test_what_libdlr_refuses_is_told_with_its_own_reason(trees, tmp_path, capfd, name, content, words):
    tree = broken(trees, tmp_path)
    (tree / name).write_bytes(content)
    code, message = refused(tree, "dlr")
    assert code == "MODEL_LOAD_FAILED"
    for word in words:
        assert word in message
    for noise in ("\n", "[bt]", "/workspace/"):
        assert noise not in message
    assert capfd.readouterr().out == ""


def test_a_model_without_meta_has_outputs_by_number(trees, tmp_path):
    tree = broken(trees, tmp_path)
    (tree / "compiled.meta").unlink()
    model = loaded(tree)
    assert [spec.name for spec in model.outputs] == ["output_0"]
    y = model.predict({"data": [[0.5] * 16]})["output_0"]
    np.testing.assert_allclose(y, by_hand(LAYERS, [[0.5] * 16]), atol=1e-5)


def test_standard_error_is_itself_again_after_a_load(trees, capfd):
    loaded(trees["dlr"])
    print("still here", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "still here\n"


def test_a_second_model_through_a_link_that_was_turned_is_the_second_model(trees, tmp_path):
    """libdlr alone gives the first one's code with the second one's parameters then."""
    other = network((16, 8, 3), seed=5)
    write_neo(tmp_path / "other", other)
    (tmp_path / "current").symlink_to(trees["dlr"])
    first = loaded(tmp_path / "current")
    (tmp_path / "next").symlink_to(tmp_path / "other")
    (tmp_path / "next").rename(tmp_path / "current")
    second = loaded(tmp_path / "current")
    x = [[0.25] * 16]
    np.testing.assert_allclose(second.predict({"data": x})["probabilities"], by_hand(other, x), atol=1e-5)
    np.testing.assert_allclose(first.predict({"data": x})["probabilities"], by_hand(LAYERS, x), atol=1e-5)


def test_dlr_never_calls_home_not_even_where_the_functions_code_imports_it(trees, tmp_path):
    """Every attempt to look up a name or to connect shows in the interpreter's own audit, whoever makes it."""
    package = Path(shutil.copytree(site_package("dlr"), tmp_path / "site" / "dlr"))
    before = sorted(str(p) for p in package.rglob("*"))
    source = f"""
import sys
SEEN = []
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
sys.addaudithook(lambda name, args: SEEN.append(name) if name in WATCHED else None)
sys.path.insert(0, {str(tmp_path / "site")!r})
import dlr
MODEL = dlr.DLRModel({str(trees["dlr"])!r})
def handler(e, c):
    y = c.model().predict({{"data": [[0.0] * 16]}})
    return {{"seen": SEEN, "where": dlr.__file__, "home": [n for n in sys.modules if "resturl" in n], "y": y}}
"""
    folder = write_function(tmp_path / "code", source)
    with WorkerChild(function_config(folder, **model_config(trees["dlr"]))) as child:
        assert [m["runtime"] for m in child.ready()["models"]] == ["dlr"]
        got = child.ask({}).json
        assert got["where"].startswith(str(tmp_path)), "the copy is the one that was watched"
        assert (got["seen"], got["home"]) == ([], [])
        assert "AWS" not in child.output
    after = sorted(str(p) for p in package.rglob("*"))
    assert after == before, "it writes its consent beside its code when it calls home"


def site_package(name: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_dlr_without_its_library_says_how_to_install_it(trees, tmp_path):
    python = bare_interpreter(tmp_path / "bare", "msgpack", "numpy")
    [site] = (tmp_path / "bare").glob("lib/python*/site-packages")
    folder = write_function(tmp_path / "code", PREDICT)
    config = function_config(folder, **model_config(trees["dlr"]))
    for _ in range(2):
        with WorkerChild(config, interpreter=python, environment={"HOME": str(tmp_path)}) as child:
            code, message = child.failed()
        assert code == "RUNTIME_MISSING"
        assert f"marram runtime install dlr --into {tmp_path / 'bare'}" in message
        shutil.copytree(site_package("dlr"), site / "dlr", dirs_exist_ok=True)  # the package, without the library


def test_interpreters_that_lack_something_say_what(trees, tmp_path):
    folder = write_function(tmp_path / "code", PREDICT)
    config = function_config(folder, **model_config(trees["onnx"]))
    python = bare_interpreter(tmp_path / "numpy", "msgpack", "numpy")
    with WorkerChild(config, interpreter=python) as child:
        code, message = child.failed()
    assert (code, f"marram runtime install onnx --into {tmp_path / 'numpy'}" in message) == ("RUNTIME_MISSING", True)
    python = bare_interpreter(tmp_path / "msgpack", "msgpack")
    with WorkerChild(config, interpreter=python) as child:
        code, message = child.failed()
    assert (code, f"{python} -m pip install numpy" in message) == ("INTERPRETER_INCOMPLETE", True)


# -- in a worker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["dlr", "onnx", "litert"])
def test_a_function_predicts_and_its_result_names_the_model(trees, tmp_path, runtime):
    folder = write_function(tmp_path / "code", PREDICT)
    config = function_config(folder, deployment="d-1", **model_config(trees[runtime]))
    with WorkerChild(config) as child:
        [model] = child.ready()["models"]
        assert (model["id"], model["runtime"], model["inputs"][0][0]) == ("net", runtime, "data")
        got = child.ask({"x": [0.5] * 16}).json
        np.testing.assert_allclose(got["probabilities"], by_hand(LAYERS, [[0.5] * 16]), atol=1e-5)
        version = "sha256:" + "0" * 64
        assert got["meta"] == {"request": "made-1", "model": "net", "version": version, "deployment": "d-1"}
        error = child.ask({"x": [0.5]}).error
        assert error is not None
        assert error[0] == "BAD_INPUT"


def test_a_model_that_cannot_be_loaded_fails_the_start(trees, tmp_path):
    tree = broken(trees, tmp_path)
    (tree / "extra.json").write_text("{}")
    folder = write_function(tmp_path / "code", PREDICT)
    with WorkerChild(function_config(folder, **model_config(tree))) as child:
        code, message = child.failed()
        assert code == "MODEL_LOAD_FAILED"
        assert message.startswith("The model net: ")
        assert "extra.json" in message
