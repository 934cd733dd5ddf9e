"""The test kit: it answers as a real worker does, byte for byte, and says why where it cannot."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import msgpack
import numpy as np
import pytest
from worker_kit import WorkerChild, by_hand, function_config, model_config, network, write_function

from agent.demo.formats import write_onnx
from functions.testing import BINARY, JSON, MSGPACK, Function, RefusedError, StandIn, StartError

LAYERS = network()
ECHO = "def handler(event, context): return {'got': event}\n"


def folder(tmp_path: Path, source: str, **siblings: str) -> Path:
    return write_function(tmp_path / "code", textwrap.dedent(source), **siblings)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("model")
    write_onnx(root / "model.onnx", LAYERS)
    return root


SCORES = """
    from functions.sdk import Result
    def handler(event, context):
        x = event["x"]
        if x is None:
            return None
        scores = context.model("net").predict({"data": [x]})["probabilities"][0]
        context.publish("also", {"scores": scores})
        return Result(payload={"best": int(scores.argmax()), "scores": scores})
    """
PAYLOADS = [
    (b'{"x": [0.5, -1, 2, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0.25]}', None),
    (msgpack.packb({"x": [0.5] * 16, "meta": {"id": "mine", "reply_to": "there"}}), MSGPACK),
    (b'{"x": null}', JSON),
    (b'{"x": [1, 2]}', JSON),
    (b'{"x": NaN}', JSON),
    (b"\xff", None),
    (b"{}", None),
    (b"raw", BINARY),
]


def test_it_answers_what_a_real_worker_answers(tmp_path, tree):
    code = folder(tmp_path, SCORES)
    with (
        Function(code, models={"net": tree}, id="test") as function,
        WorkerChild(function_config(code, deployment="test", **model_config(tree))) as child,
    ):
        child.ready()
        for body, content_type in PAYLOADS:
            real = child.ask(body, content_type=content_type, wanted=True, topic="test")
            [got] = function.ask_all([body], content_type=content_type, ids=[f"made-{real.n}"])
            if isinstance(got, RefusedError):
                assert (got.code, got.message) == real.error
            else:
                assert [(o.topic, o.content_type, o.body) for o in got.outputs] == [
                    (topic or "test/test", kind, body) for topic, kind, body in real.outputs
                ]
                assert (got.request, got.reply_to) == (real.request, real.reply_to)


def test_an_answer_is_decoded_and_named(tmp_path, tree):
    with Function(folder(tmp_path, SCORES), models={"net": tree}) as function:
        x = np.arange(16) / 16
        answer = function.ask({"x": x.tolist()}, topic="line/1", id="r-1")
        np.testing.assert_allclose(answer.payload["scores"], by_hand(LAYERS, x), atol=1e-5)
        assert answer.payload["meta"] == {
            "request": "r-1", "model": "net", "version": "sha256:" + "0" * 64, "deployment": "test",
        }  # fmt: skip
        assert [output.topic for output in answer.outputs] == ["line/1/code", "also"]
        array = function.ask({"x": x}, content_type=MSGPACK).outputs[1].payload["scores"]
        assert isinstance(array, np.ndarray)
        assert function.ask({"x": None}).payload is None
        assert 0 < answer.seconds < 60


def test_a_stand_in_is_checked_as_a_model_is(tmp_path):
    scores = {"probabilities": np.zeros((1, 3), "f4")}
    model = StandIn({"data": ("f4", [None, 16])}, {"probabilities": ("f4", [None, 3])}, lambda inputs: scores)
    with Function(folder(tmp_path, SCORES), models={"net": model}) as function:
        assert function.ask({"x": [0] * 16}).payload["best"] == 0
        with pytest.raises(RefusedError, match="BAD_INPUT"):
            function.ask({"x": [0] * 15})
        scores["probabilities"] = np.zeros((1, 2), "f4")
        with pytest.raises(RefusedError, match=r"MODEL_FAILED.* has the shape"):
            function.ask({"x": [0] * 16})
        scores["probabilities"] = np.zeros((1, 3), "f8")
        with pytest.raises(RefusedError, match=r"MODEL_FAILED.* float64, not float32"):
            function.ask({"x": [0] * 16})
        scores["other"] = scores.pop("probabilities")
        with pytest.raises(RefusedError, match=r"MODEL_FAILED.* not its outputs"):
            function.ask({"x": [0] * 16})


def test_a_stand_in_that_fails_on_zeros_does_not_start(tmp_path):
    model = StandIn({"data": ("f4", [1])}, {"y": ("f4", [1])}, lambda inputs: {"y": 1 / 0})
    with pytest.raises(StartError, match="fails on zeros") as caught:
        Function(folder(tmp_path, ECHO), models={"m": model})
    assert caught.value.code == "MODEL_WARM_UP_FAILED"


def test_what_a_handler_raises_is_the_cause(tmp_path):
    with Function(folder(tmp_path, "def handler(event, context): return 1 / event")) as function:
        with pytest.raises(RefusedError, match="FUNCTION_RAISED: ZeroDivisionError") as caught:
            function.ask(0)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert function.ask(2).payload == 0.5


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1, 2}, object()])
def test_what_cannot_be_sent_cannot_be_asked(tmp_path, value):
    with Function(folder(tmp_path, ECHO)) as function, pytest.raises(Exception, match="cannot be sent as JSON"):
        function.ask(value)


def test_a_result_that_is_no_json_is_refused(tmp_path):
    source = "def handler(event, context): return {'x': float('nan')}"
    with (
        Function(folder(tmp_path, source)) as function,
        pytest.raises(RefusedError, match="RESULT_NOT_ENCODABLE"),
    ):
        function.ask(None)


def test_batches_are_the_workers(tmp_path):
    source = """
        sizes = []
        def batch_handler(events, contexts):
            sizes.append(len(events))
            return [ValueError("odd") if event % 2 else {"size": len(events)} for event in events]
    """
    with Function(folder(tmp_path, source), max_batch=3) as function:
        outcomes = function.ask_all([0, 1, 2, 4])
        assert isinstance(outcomes[1], RefusedError)
        sizes = [each.payload["size"] for each in outcomes if not isinstance(each, RefusedError)]
        assert sizes == [3, 3, 1]


def test_async_requests_are_under_way_together_on_one_loop(tmp_path):
    source = """
        import asyncio
        queue = asyncio.Queue()
        async def handler(event, context):
            if event == "put":
                queue.put_nowait(context.request)
                return None
            return await queue.get()
    """
    with Function(folder(tmp_path, source), concurrency=2, timeout_s=0.05) as function:
        got, put = function.ask_all(["get", "put"])
        assert not isinstance(got, RefusedError)
        assert not isinstance(put, RefusedError)
        assert (got.payload, put.payload) == ("request-2", None)
        function.ask("put")
        assert function.ask("get").payload == "request-3"
        with pytest.raises(RefusedError, match="FUNCTION_TIMEOUT"):
            function.ask("get")


def test_a_plain_handler_that_takes_too_long_is_refused(tmp_path):
    source = """
        import time
        def handler(event, context): time.sleep(event)
    """
    with Function(folder(tmp_path, source), timeout_s=0.05) as function:
        with pytest.raises(RefusedError, match="FUNCTION_TIMEOUT"):
            function.ask(0.06)
        function.ask(0)


def test_samples_and_the_own_directory(tmp_path):
    source = """
        def handler(event, context):
            (context.state_dir / "seen").write_text(context.topic)
            context.capture()
            context.capture(reason="odd", output={"why": 1})
            return {"a": event}
    """
    with Function(folder(tmp_path, source), meta=False, state_dir=tmp_path) as function:
        first, second = function.ask({"x": 1}).samples
        assert first == ("explicit", {"x": 1}, {"a": {"x": 1}})
        assert second == ("odd", {"x": 1}, {"why": 1})
    assert (tmp_path / "seen").read_text() == "test"


def test_an_endpoint_without_code(tree):
    x = np.ones((2, 16), "f4")
    request = {"inputs": [{"name": "data", "shape": [2, 16], "datatype": "FP32", "data": x.ravel().tolist()}]}
    with Function(None, models={"net": tree}) as endpoint:
        answer = endpoint.ask(request).payload
        assert (answer["model_name"], answer["outputs"][0]["shape"]) == ("net", [2, 3])
    model = StandIn({"a": ("f4", [None])}, {"b": ("f4", [None])}, lambda inputs: {"b": inputs["a"]})
    with Function(None, models={"m": model}, encoding="binary") as endpoint:
        one = {"name": "a", "shape": [1], "datatype": "FP32", "data": [3]}
        assert endpoint.ask({"inputs": [one]}).payload["outputs"][0]["data"] == b"\x00\x00\x40\x40"


def test_functions_with_modules_of_one_name_do_not_meet(tmp_path):
    path, before = list(sys.path), sys.dont_write_bytecode
    for name in ("one", "two"):
        code = write_function(
            tmp_path / name, "import shared\ndef handler(e, c): return shared.NAME", shared=f"NAME = '{name}'"
        )
        with Function(code) as function:
            assert function.ask(None).payload == name
    assert sys.path == path
    assert "shared" not in sys.modules
    assert sys.dont_write_bytecode == before


def test_a_function_that_does_not_start_leaves_nothing_behind(tmp_path):
    path = list(sys.path)
    with pytest.raises(StartError, match="no handler"):
        Function(folder(tmp_path, "x = 1"))
    assert sys.path == path
