"""A model endpoint without code, over a real worker: the Open Inference Protocol in JSON and in msgpack."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgpack
import numpy as np
import pytest
from onnx import TensorProto, helper
from test_runtimes import write_graph
from worker_kit import MSGPACK, WorkerChild, by_hand, function_config, model_config, network

from agent.demo.formats import write_neo, write_onnx
from functions.endpoint import DATATYPES, Endpoint
from functions.errors import RequestError
from functions.runtimes.base import Model, ModelInputError, TensorSpec
from functions.sdk import Context

LAYERS = network()
VERSION = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("endpoint")
    write_onnx(root / "model.onnx", LAYERS)
    return root


@pytest.fixture(scope="module")
def child(tree):
    """One endpoint for all tests that only ask it."""
    with WorkerChild(function_config(**model_config(tree))) as worker:
        worker.ready()
        yield worker


def rows(count: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


def tensor(x, **more):
    return {"name": "data", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist(), **more}


def test_a_request_in_json(child):
    x = rows(2)
    got = child.ask({"id": "r-1", "inputs": [tensor(x)]})
    assert got.request == "r-1"
    answer = got.json
    [output] = answer.pop("outputs")
    assert answer == {
        "model_name": "net",
        "model_version": VERSION,
        "id": "r-1",
        "meta": {"request": "r-1", "model": "net", "version": VERSION},
    }
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 3])
    np.testing.assert_allclose(output["data"], by_hand(LAYERS, x).ravel(), atol=1e-5)


def test_nested_data_is_the_same_as_flat(child):
    x = rows(2)
    flat, nested = (child.ask({"inputs": [tensor(x, data=d)]}).json for d in (x.ravel().tolist(), x.tolist()))
    assert flat["outputs"] == nested["outputs"]


def test_its_msgpack_twin_carries_bytes(child):
    x = rows(3)
    body = msgpack.packb({"id": "m", "inputs": [tensor(x, data=x.astype("<f4").tobytes())]})
    [(_, content_type, payload)] = child.ask(body, content_type=MSGPACK).outputs
    answer = msgpack.unpackb(payload)
    assert (content_type, answer["id"], answer["model_name"]) == (MSGPACK, "m", "net")
    [output] = answer["outputs"]
    y = np.frombuffer(output["data"], "<f4").reshape(output["shape"])
    np.testing.assert_allclose(y, by_hand(LAYERS, x), atol=1e-5)


def test_encoding_binary_means_msgpack(tree):
    with WorkerChild(function_config(encoding="binary", **model_config(tree))) as child:
        child.ready()
        x = rows(1)
        answer = msgpack.unpackb(child.ask(msgpack.packb({"inputs": [tensor(x)]})).outputs[0][2])
        assert answer["id"] == "made-1"
        assert isinstance(answer["outputs"][0]["data"], bytes)


def test_the_id_of_meta_names_the_request_and_the_protocols_own_is_echoed(child):
    got = child.ask({"id": "own", "meta": {"id": "mine", "reply_to": "r"}, "inputs": [tensor(rows(1))]})
    assert (got.request, got.reply_to, got.json["id"]) == ("mine", "r", "own")


def test_only_the_outputs_that_are_asked_for(child):
    x = rows(1)
    assert len(child.ask({"inputs": [tensor(x)], "outputs": [{"name": "probabilities"}]}).json["outputs"]) == 1
    error = child.ask({"inputs": [tensor(x)], "outputs": [{"name": "other"}]}).error
    assert error is not None
    assert error[0] == "BAD_PAYLOAD"
    assert "probabilities" in error[1]


@pytest.mark.parametrize(
    ("event", "code", "word"),
    [
        ([], "BAD_PAYLOAD", "inputs"),
        ({}, "BAD_PAYLOAD", "inputs"),
        ({"inputs": {}}, "BAD_PAYLOAD", "inputs"),
        ({"inputs": []}, "BAD_PAYLOAD", "inputs"),
        ({"inputs": [1]}, "BAD_PAYLOAD", "object"),
        ({"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}, "BAD_PAYLOAD", "`name`"),
        ({"inputs": [tensor(rows(1), shape=None)]}, "BAD_PAYLOAD", "`shape`"),
        ({"inputs": [tensor(rows(1), shape=[1, -16])]}, "BAD_PAYLOAD", "`shape`"),
        ({"inputs": [tensor(rows(1), shape=[True, 16])]}, "BAD_PAYLOAD", "`shape`"),
        ({"inputs": [tensor(rows(1), shape=[2, 16])]}, "BAD_PAYLOAD", "shape"),
        ({"inputs": [tensor(rows(1), datatype="BYTES")]}, "BAD_PAYLOAD", "'BYTES'"),
        ({"inputs": [tensor(rows(1), datatype=["FP32"])]}, "BAD_PAYLOAD", "`datatype`"),
        ({"inputs": [tensor(rows(1), data=None)]}, "BAD_PAYLOAD", "`data`"),
        ({"inputs": [tensor(rows(1), data=["a"] * 16)]}, "BAD_INPUT", "float32"),
        ({"inputs": [tensor(rows(1), data=[[1.0], [1.0, 2.0]])]}, "BAD_INPUT", "no array"),
        ({"inputs": [tensor(rows(1), datatype="INT8", data=[300] * 16)]}, "BAD_INPUT", "int8"),
        ({"inputs": [tensor(rows(1), name="x")]}, "BAD_INPUT", '"x" is unknown'),
        ({"inputs": [tensor(rows(1)), tensor(rows(1))]}, "BAD_PAYLOAD", "twice"),
        ({"inputs": [tensor(rows(1)[:, :15])]}, "BAD_INPUT", "[1, 15]"),
        ({"inputs": [tensor(rows(1))], "outputs": "all"}, "BAD_PAYLOAD", "`outputs`"),
        ({"inputs": [tensor(rows(1))], "outputs": [{}]}, "BAD_PAYLOAD", "None"),
    ],
)
def test_what_is_no_request_is_refused_with_its_reason(child, event, code, word):
    error = child.ask(event).error
    assert error is not None
    assert error[0] == code
    assert word in error[1]


def test_bytes_of_the_wrong_length(child):
    body = msgpack.packb({"inputs": [tensor(rows(1), data=b"123")]})
    error = child.ask(body, content_type=MSGPACK).error
    assert error is not None
    assert error[0] == "BAD_PAYLOAD"
    assert "3 bytes" in error[1]
    assert "64" in error[1]


def test_a_result_that_json_cannot_hold_is_an_error_and_not_nan(tmp_path):
    tensors = [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])]
    write_graph(tmp_path / "m.onnx", [helper.make_node("Log", ["x"], ["y"])], *tensors)
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [-1.0]}]}
    with WorkerChild(function_config(**model_config(tmp_path))) as child:
        child.ready()
        error = child.ask(request).error
        assert error is not None
        assert error[0] == "RESULT_NOT_ENCODABLE"
        answer = msgpack.unpackb(child.ask(msgpack.packb(request), content_type=MSGPACK).outputs[0][2])
        assert np.isnan(np.frombuffer(answer["outputs"][0]["data"], "<f4")).all()


def test_an_endpoint_needs_exactly_one_model(tree):
    with WorkerChild(function_config()) as child:
        code, message = child.failed()
    assert (code, "exactly one model" in message) == ("FUNCTION_NOT_FOUND", True)


def test_a_batch_gives_what_single_requests_give(tree, child):
    requests = [{"id": str(i), "inputs": [tensor(rows(1 + i % 3, seed=i))]} for i in range(12)]
    requests[5] = {"id": "5", "inputs": [tensor(rows(1)[:, :15])]}
    requests[7] = {"id": "7"}
    with WorkerChild(function_config(batch={"max_size": 8, "max_delay_ms": 0}, **model_config(tree))) as batching:
        assert batching.ready()["max_batch"] == 8
        batching.send(*[batching.request_frame(request) for request in requests])
        together = {o.request: o for o in (batching.outcome() for _ in requests)}
    for request in requests:
        one, other = child.ask(request), together[request["id"]]
        assert one.error == other.error
        if one.error is None:
            [a], [b] = one.json["outputs"], other.json["outputs"]
            assert a["shape"] == b["shape"]
            np.testing.assert_allclose(a["data"], b["data"], atol=1e-6)


def test_a_fixed_number_of_rows_is_served_one_at_a_time(tmp_path):
    write_neo(tmp_path / "neo", LAYERS)
    config = function_config(batch={"max_size": 8, "max_delay_ms": 0}, **model_config(tmp_path / "neo"))
    with WorkerChild(config) as child:
        assert child.ready()["max_batch"] == 1
        x = rows(1)
        got = child.ask({"inputs": [tensor(x)]}).json["outputs"][0]["data"]
        np.testing.assert_allclose(got, by_hand(LAYERS, x).ravel(), atol=1e-5)


class Same(Model):
    """A model that gives back what it gets, of one type, and counts its predictions."""

    runtime = "test"

    def __init__(self, dtype: str) -> None:
        super().__init__([TensorSpec("x", (None, 2), dtype)], [TensorSpec("y", (None, 2), dtype)])
        self.calls = 0

    def _run(self, arrays):
        self.calls += 1
        return {"y": arrays["x"]}


def test_every_shape_is_looked_at_whatever_came_before():
    model = Same("float32")
    for shape, fits in [((1, 2), True), ((1, 3), False), ((4, 2), True), ((2,), False), ((1, 2), True)]:
        if fits:
            assert model.predict({"x": np.zeros(shape, np.float32)})["y"].shape == shape
        else:
            with pytest.raises(ModelInputError, match="takes"):
                model.predict({"x": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("wrong", [{}, {"y": [[1.0, 2.0]]}, {"x": [[1.0, 2.0]], "y": 1}])
def test_the_names_of_the_inputs_must_be_the_models(wrong):
    with pytest.raises(ModelInputError, match=r"inputs are x: .*(missing|unknown)"):
        Same("float32").predict(wrong)


@pytest.mark.parametrize(("datatype", "dtype"), DATATYPES.items())
def test_every_datatype_both_ways(datatype, dtype):
    endpoint = Endpoint("m", "v", Same(dtype))
    x = np.array([[0, 1], [1, 0]], dtype)
    as_list = {"name": "x", "shape": [2, 2], "datatype": datatype, "data": x.tolist()}
    as_bytes = {**as_list, "data": x.tobytes()}
    for sent, content_type in itertools.product((as_list, as_bytes), ("application/json", MSGPACK)):
        context = Context("f", "r", "t", content_type=content_type)
        [output] = endpoint.handle({"inputs": [sent]}, context)["outputs"]
        assert (output["datatype"], output["shape"]) == (datatype, [2, 2])
        data = output["data"] if content_type == MSGPACK else output["data"].tobytes()
        assert data == x.tobytes()


def test_likes_share_a_prediction_and_unlikes_do_not():
    model = Same("float32")
    endpoint = Endpoint("m", "v", model)

    def request(count, **more):
        return {"inputs": [{"name": "x", "shape": [count, 2], "datatype": "FP32", "data": [1.0] * count * 2, **more}]}

    events = [request(1), request(2), request(0), request(1, name="z"), request(3)]
    contexts = [Context("f", str(i), "t") for i in range(5)]
    results = endpoint.handle_batch(events, contexts)
    assert [r["outputs"][0]["shape"] for r in (results[0], results[1], results[4])] == [[1, 2], [2, 2], [3, 2]]
    assert results[2]["outputs"][0]["shape"] == [0, 2]
    assert isinstance(results[3], RequestError)
    model.calls = 0
    endpoint.handle_batch(events[:2] + events[4:], contexts[:3])
    assert model.calls == 1
