"""A real worker child over real sockets: what it says at its start, and what becomes of each request."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from worker_kit import (
    BINARY,
    BOOT,
    DEADLINE_S,
    JSON,
    MSGPACK,
    WorkerChild,
    bare_interpreter,
    function_config,
    until,
    write_function,
)

import functions
from functions import config, frames, payload
from functions.calls import Calls
from functions.errors import RequestError
from functions.sdk import Given


def worker(tmp_path: Path, source: str, *, config: dict | None = None, siblings: dict | None = None, **more):
    folder = write_function(tmp_path / "code", textwrap.dedent(source), **(siblings or {}))
    return WorkerChild(function_config(folder, **(config or {})), **more)


ECHO = "def handler(event, context): return {'got': event}\n"
KINDS = """
    import numpy as np
    def handler(event, context):
        what = event["what"] if isinstance(event, dict) else event.decode()
        return {
            "text": "good", "bytes": b"\\xff\\x00", "number": 1.5, "list": [1, "a", None], "true": True,
            "array": np.arange(6, dtype="f4").reshape(2, 3), "scalar": np.float32(0.5),
            "nested": {"a": [np.int64(3)]}, "nan": {"a": float("nan")}, "nan array": {"a": np.array([np.inf])},
            "object": {"a": object()}, "surrogate": {"a": "\\ud800"}, "int keys": {1: 2}, "null": {"a": None},
        }[what]
    """


# -- start ----------------------------------------------------------------------------------------------------------


def test_ready_tells_what_it_loaded_and_siblings_import(tmp_path):
    source = "import figures\ndef handler(event, context): return figures.ANSWER\n"
    with worker(tmp_path, source, siblings={"figures": "ANSWER = 42"}) as child:
        facts = child.ready()
        assert facts["models"] == []
        assert facts["max_batch"] == 1
        assert {"import_s", "load_s", "warm_up_s"} <= facts.keys()
        assert child.ask({}).json == 42
        assert child.stop() == 0
    assert not list((tmp_path / "code").glob("__pycache__")), "the function's folder is an object: nothing may be added"


def test_a_worker_without_models_imports_neither_numpy_nor_logging_nor_the_agent(tmp_path):
    source = """
        import sys
        def handler(event, context):
            return [n for n in ("numpy", "logging", "asyncio", "agent", "onnxruntime", "dlr") if n in sys.modules]
        """
    with worker(tmp_path, source) as child:
        child.ready()
        assert child.ask({}).json == []


def test_a_relative_import_inside_the_folder_works(tmp_path):
    with worker(
        tmp_path, "from . import side\ndef handler(e, c): return side.X\n", siblings={"side": "X = 7"}
    ) as child:
        child.ready()
        assert child.ask({}).json == 7


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("", "FUNCTION_NOT_FOUND", ["handler(event, context)"]),
        ("handler = 3", "FUNCTION_NOT_FOUND", ["handler"]),
        ("import no_such_module_anywhere", "FUNCTION_IMPORT_FAILED", ["no_such_module_anywhere", "(__init__.py:1)"]),
        ("\n\ndef f(:\n", "FUNCTION_IMPORT_FAILED", ["SyntaxError", "(__init__.py:3)"]),
        ("import side", "FUNCTION_IMPORT_FAILED", ["ZeroDivisionError", "(side.py:2)"]),
        ("raise SystemExit(3)", "FUNCTION_IMPORT_FAILED", ["SystemExit: 3"]),
    ],
)
def test_code_that_cannot_be_used_fails_the_start_with_its_reason(tmp_path, source, code, words):
    with worker(tmp_path, source, siblings={"side": "a = 1\nb = a / 0\n"}) as child:
        got, message = child.failed()
        assert got == code
        for word in words:
            assert word in message
        assert "Traceback" not in message


def test_a_folder_without_init_is_not_found(tmp_path):
    with WorkerChild(function_config(tmp_path)) as child:
        code, message = child.failed()
    assert code == "FUNCTION_NOT_FOUND"
    assert str(tmp_path) in message


def test_another_handler_name(tmp_path):
    with worker(tmp_path, "def other(e, c): return 1\n", config={"handler": "other"}) as child:
        child.ready()
        assert child.ask({}).json == 1


def test_an_interpreter_without_msgpack_says_so(tmp_path):
    python = bare_interpreter(tmp_path / "bare")
    folder = write_function(tmp_path / "code", ECHO)
    with WorkerChild(function_config(folder), interpreter=python) as child:
        code, message = child.failed()
    assert code == "INTERPRETER_INCOMPLETE"
    assert f"{python} -m pip install msgpack numpy" in message


def test_an_interpreter_with_msgpack_alone_serves_json(tmp_path):
    python = bare_interpreter(tmp_path / "bare", "msgpack")
    folder = write_function(tmp_path / "code", "import sys\ndef handler(e, c): return [e, 'orjson' in sys.modules]\n")
    with WorkerChild(function_config(folder), interpreter=python) as child:
        child.ready()
        assert child.ask({"a": [1.5, "ü"]}).json == [{"a": [1.5, "ü"]}, False]
        assert child.ask(b'{"a": NaN}').error[0] == "BAD_PAYLOAD"


# -- requests -------------------------------------------------------------------------------------------------------


def test_events_by_content_type_and_encoding(tmp_path):
    source = "def handler(event, context): return {'type': type(event).__name__, 'as': context.content_type}\n"
    with worker(tmp_path, source, config={"encoding": "binary"}) as child:
        child.ready()
        cases = [
            (None, b"{}", "bytes", BINARY),
            ("image/png", b"{}", "bytes", BINARY),
            ("Application/JSON; charset=utf-8", b"{}", "dict", JSON),
            (MSGPACK, msgpack.packb([1]), "list", MSGPACK),
            (BINARY, b"", "bytes", BINARY),
        ]
        for content_type, body, name, as_ in cases:
            outcome = child.ask(body, content_type=content_type)
            [(topic, sent_as, payload)] = outcome.outputs
            got = msgpack.unpackb(payload) if sent_as == MSGPACK else json.loads(payload)
            assert (topic, got["type"], got["as"]) == (None, name, as_)
            assert sent_as == (MSGPACK if as_ == MSGPACK else JSON)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", JSON),
        (b"", JSON),
        (b"NaN", JSON),
        (b'{"a": -Infinity}', JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (b"\xc1", MSGPACK),
        (b"", MSGPACK),
        (b"\x01\x01", MSGPACK),
        (b"\x91" * 100_000, MSGPACK),
        (msgpack.packb({"shape": [2], "dtype": "float32", "data": b"123"}), MSGPACK),
        (msgpack.packb({"shape": [-1], "dtype": "float32", "data": b"1234"}), MSGPACK),
        (msgpack.packb({"shape": [1], "dtype": "O", "data": b"12345678"}), MSGPACK),
        (msgpack.packb({"shape": [1], "dtype": ["float32"], "data": b"1234"}), MSGPACK),
        (b'{"meta": {"id": "a\\u0000b"}}', JSON),
        (b'{"meta": {"id": ["a"]}}', JSON),
        (b'{"meta": {"reply_to": "\\ud800"}}', JSON),
        (b'{"meta": {"reply_to": 5}}', JSON),
    ],
)
def test_a_bad_payload_is_answered_and_harms_nothing(tmp_path, body, content_type):
    with worker(tmp_path, ECHO) as child:
        child.ready()
        outcome = child.ask(body, content_type=content_type)
        assert outcome.error is not None
        assert outcome.error[0] == "BAD_PAYLOAD"
        assert outcome.request == "made-1"
        assert child.ask({"still": "there"}).json["got"] == {"still": "there"}


def test_the_id_and_reply_to_of_meta(tmp_path):
    with worker(tmp_path, "def handler(e, c): return {'id': c.request, 'topic': c.topic, 'event': e}\n") as child:
        child.ready()
        event = {"meta": {"id": "mine", "reply_to": "answers/1"}}
        outcome = child.ask(event, topic="a/b")
        assert (outcome.request, outcome.reply_to) == ("mine", "answers/1")
        assert outcome.json == {"id": "mine", "topic": "a/b", "event": event, "meta": {"request": "mine"}}
        assert child.ask({"meta": {"id": 7}}).request == "7"
        assert child.ask({"id": "not an endpoint"}).request == "made-3"
        assert child.ask({"meta": "text"}).request == "made-4"


def test_meta_says_where_a_result_comes_from(tmp_path):
    config = {"deployment": "d-1", "model": "net"}
    with worker(tmp_path, "def handler(e, c): return {'a': 1, 'meta': {'mine': 2}}\n", config=config) as child:
        child.ready()
        meta = {"mine": 2, "request": "made-1", "model": "net", "deployment": "d-1"}
        assert child.ask({}).json == {"a": 1, "meta": meta}
        got = msgpack.unpackb(child.ask(msgpack.packb({}), content_type=MSGPACK).outputs[0][2])
        assert got["meta"]["request"] == "made-2"
    with worker(tmp_path, "def handler(e, c): return {'a': 1}\n", config={**config, "meta": False}) as child:
        child.ready()
        assert child.ask({}).json == {"a": 1}


def test_results_of_every_kind(tmp_path):
    with worker(tmp_path, KINDS, config={"meta": False}) as child:
        child.ready()

        def sent(what, content_type=JSON):
            event = {JSON: json.dumps({"what": what}).encode(), MSGPACK: msgpack.packb({"what": what})}
            outcome = child.ask(event.get(content_type, what.encode()), content_type=content_type)
            return outcome.error or outcome.outputs[0][1:]

        assert sent("text") == (JSON, b'"good"')
        assert sent("text", BINARY) == (BINARY, b"good")
        assert sent("bytes") == (BINARY, b"\xff\x00")
        assert sent("bytes", BINARY) == (BINARY, b"\xff\x00")
        assert sent("bytes", MSGPACK) == (MSGPACK, msgpack.packb(b"\xff\x00"))
        assert sent("number") == (JSON, b"1.5")
        assert sent("number", BINARY) == (JSON, b"1.5")
        assert sent("list") == (JSON, b'[1,"a",null]')
        assert sent("true") == (JSON, b"true")
        assert sent("null") == (JSON, b'{"a":null}')
        assert sent("int keys") == (JSON, b'{"1":2}')
        assert json.loads(sent("array")[1]) == [[0, 1, 2], [3, 4, 5]]
        assert json.loads(sent("scalar")[1]) == 0.5
        assert json.loads(sent("nested")[1]) == {"a": [3]}
        array = msgpack.unpackb(sent("array", MSGPACK)[1])
        assert array == {"shape": [2, 3], "dtype": "float32", "data": np.arange(6, dtype="<f4").tobytes()}
        assert msgpack.unpackb(sent("nested", MSGPACK)[1]) == {"a": [3]}
        assert math.isnan(msgpack.unpackb(sent("nan", MSGPACK)[1])["a"])
        for what in ("nan", "nan array", "object", "surrogate"):
            assert sent(what)[0] == "RESULT_NOT_ENCODABLE", what
        assert sent("object", MSGPACK)[0] == "RESULT_NOT_ENCODABLE"


def test_arrays_of_msgpack_arrive_as_arrays(tmp_path):
    source = "def handler(e, c): return {'sum': float(e['x'].sum()), 'dtype': str(e['x'].dtype), 'x': e['x'] * 2}\n"
    with worker(tmp_path, source) as child:
        child.ready()
        x = np.arange(4, dtype="<i2").reshape(2, 2)
        event = {"x": {"shape": [2, 2], "dtype": "int16", "data": x.tobytes()}}
        got = msgpack.unpackb(child.ask(msgpack.packb(event), content_type=MSGPACK).outputs[0][2])
        assert (got["sum"], got["dtype"]) == (6.0, "int16")
        assert got["x"] == {"shape": [2, 2], "dtype": "int16", "data": (x * 2).tobytes()}


def test_no_result_gives_no_output_and_an_answer_only_where_one_is_wanted(tmp_path):
    source = "def handler(e, c):\n    if e.get('publish'): c.publish('side', {'a': 1})\n"
    with worker(tmp_path, source) as child:
        child.ready()
        quiet = child.ask({})
        assert (quiet.outputs, quiet.answer, quiet.error) == ([], None, None)
        wanted = child.ask({}, wanted=True)
        assert wanted.answer == (JSON, b'{"meta":{"request":"made-2"}}')
        assert child.ask({"meta": {"reply_to": "r"}}).answer == (JSON, b'{"meta":{"request":"made-3"}}')
        packed = child.ask(msgpack.packb({}), content_type=MSGPACK, wanted=True)
        assert packed.answer == (MSGPACK, msgpack.packb({"meta": {"request": "made-4"}}))
        both = child.ask({"publish": True}, wanted=True)
        assert [topic for topic, *_ in both.outputs] == ["side"]
        assert both.answer is not None


def test_results_that_name_their_topic(tmp_path):
    source = """
        from functions.sdk import Result
        def handler(event, context):
            context.publish("third", b"raw", "image/jpeg")
            many = [Result("first", {"a": 1}), Result(None, b"xyz")]
            return many if event else Result("only", "text", "text/plain")
        """
    with worker(tmp_path, source) as child:
        child.ready()
        outcome = child.ask({"many": 1})
        assert outcome.outputs == [
            ("first", JSON, b'{"a":1,"meta":{"request":"made-1"}}'),
            (None, BINARY, b"xyz"),
            ("third", "image/jpeg", b"raw"),
        ]
        assert child.ask({}).outputs[0] == ("only", "text/plain", b"text")


@pytest.mark.parametrize(
    ("statement", "code", "words"),
    [
        ("{}['x']", "FUNCTION_RAISED", ["KeyError: 'x'", "(__init__.py:4)"]),
        ("side.fail()", "FUNCTION_RAISED", ["ValueError: no good", "(side.py:2)"]),
        ("import json; json.loads('{')", "FUNCTION_RAISED", ["JSONDecodeError", "(__init__.py:4)"]),
        ("sys.exit(3)", "FUNCTION_RAISED", ["SystemExit: 3"]),
        ("raise KeyboardInterrupt", "FUNCTION_RAISED", ["KeyboardInterrupt"]),
        (
            "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})",
            "FUNCTION_RAISED",
            ["Odd (__init__.py:4)"],
        ),
        ("return bytes(256 * 1024 * 1024 + 1)", "FUNCTION_RAISED", ["beyond MQTT's limit"]),
        ("raise MemoryError", "OUT_OF_MEMORY", ["test"]),
        ("raise RequestError('TOO_SHORT', 'Send more.')", "TOO_SHORT", ["Send more."]),
        ("raise ValueError('\\ud800')", "FUNCTION_RAISED", ["ValueError: ?"]),
        ("context.model('net')", "FUNCTION_RAISED", ["UnknownModelError", '"net"', "its models: none"]),
        ("Result(topic=5)", "FUNCTION_RAISED", ["TypeError: topic must be a text"]),
        ("def f(): f()\n    f()", "FUNCTION_RAISED", ["RecursionError"]),
    ],
)
def test_what_a_handler_raises_fails_that_request_alone(tmp_path, statement, code, words):
    source = f"import sys, side\nfrom functions.sdk import *\ndef handler(event, context):\n    {statement}\n"
    with worker(tmp_path, source, siblings={"side": "def fail():\n    raise ValueError('no good')\n"}) as child:
        child.ready()
        for _ in range(2):
            outcome = child.ask({"meta": {"id": "mine"}})
            assert outcome.request == "mine"
            assert outcome.error is not None
            assert outcome.error[0] == code
            for word in words:
                assert word in outcome.error[1]


def test_a_circular_result_is_not_encodable(tmp_path):
    with worker(tmp_path, "def handler(e, c):\n    r = {}\n    r['r'] = r\n    return r\n") as child:
        child.ready()
        for content_type, body in ((JSON, b"{}"), (MSGPACK, msgpack.packb({}))):
            outcome = child.ask(body, content_type=content_type)
            assert outcome.error is not None
            assert outcome.error[0] == "RESULT_NOT_ENCODABLE"


def test_the_logger_and_print_reach_the_output_at_once_with_the_requests_id(tmp_path):
    source = "def handler(e, c):\n    print('printed')\n    c.logger.info('seen %d', 5)\n    return 1\n"
    with worker(tmp_path, source) as child:
        child.ready()
        child.ask({"meta": {"id": "mine"}})
        assert "printed\n" in child.output
        assert "INFO [mine] seen 5\n" in child.output


# -- JSON with and without orjson -----------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


def outcome_of(function, value):
    try:
        return function(value)
    except (ValueError, TypeError):
        return "refused"


@given(VALUES)
def test_orjson_writes_what_json_writes(value):
    pytest.importorskip("orjson")
    one, other = outcome_of(payload._json_dumps, value), outcome_of(payload._dumps, value)
    if "refused" in (one, other):
        assert one == other
    else:
        assert json.loads(one) == json.loads(other)


IDS = st.text(min_size=1, max_size=300).filter(str.isprintable) | st.sampled_from(["null", '"', "x" * 256])


@given(st.dictionaries(st.text() | st.just("meta") | st.integers(), VALUES, max_size=4), IDS, st.booleans())
def test_the_short_way_to_a_result_gives_what_the_long_one_gives(result, request_id, with_meta):
    model = {"id": "net", "path": "/", "version": "sha256:00"}
    settings = config.read(function_config(meta=with_meta, model="net", models=[model], state_dir="/"))
    calls = Calls(settings, Given("test"))
    call = calls.received(([frames.REQUEST, 7, "t", None, request_id, False], b"{}"))

    def made(way):
        [(header, body)] = frames.FrameReader().feed(b"".join(way(call, result)))
        if header[0] == frames.JSON_RESULT:  # no more than the other says, in fewer words
            header = [frames.RESULT, *header[1:], None, [[None, "application/json", len(body)]], None]
        return (
            header[:4],
            [output[:2] for output in header[4]],
            header[5:],
            json.loads(body),
            len(body) == header[4][0][2],
        )

    def or_code(way):
        try:
            return made(way)
        except RequestError as error:
            return error.code

    assert or_code(calls.answer) == or_code(calls._answer)


def is_alike(one, other):
    """Whether both are the same event; orjson makes a float of a whole number beyond 64 bits."""
    if type(one) is int and type(other) is float:
        return not -(2**63) <= one < 2**64 and float(one) == other
    if type(one) is list and type(other) is list:
        return len(one) == len(other) and all(map(is_alike, one, other))
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(is_alike(value, other[key]) for key, value in one.items())
    return one == other


@example(b'{"n": [-9223372036854775809, 18446744073709551616]}')
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_json_to_both_or_to_neither(body):
    pytest.importorskip("orjson")
    one, other = outcome_of(payload._json_loads, body), outcome_of(payload._loads, body)
    assert is_alike(one, other)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_a_bad_payload(body):
    for decode in payload.DECODERS.values():
        try:
            decode(body)
        except RequestError:
            pass


# -- many -----------------------------------------------------------------------------------------------------------


def test_many_requests_at_once_are_answered_in_order_then_stop_ends_it(tmp_path):
    with worker(tmp_path, ECHO) as child:
        child.ready()
        requests = [child.request_frame({"i": i}) for i in range(3000)]
        # Beside the reading: neither end takes more once what it writes is not read.
        sending = threading.Thread(target=child.send, args=(*requests, frames.pack([frames.STOP])))
        sending.start()
        outcomes = [child.outcome() for _ in range(3000)]
        sending.join()
        assert [o.n for o in outcomes] == list(range(1, 3001))
        assert [o.json["got"]["i"] for o in outcomes] == list(range(3000))
        with pytest.raises(EOFError):
            child.next_frame()
        assert child.process.wait(DEADLINE_S) == 0


def test_a_large_payload_comes_back_whole(tmp_path):
    with worker(tmp_path, "def handler(e, c): return e\n", config={"encoding": "binary"}) as child:
        child.ready()
        body = os.urandom(5_000_000)
        assert child.ask(body).outputs == [(None, BINARY, body)]


BATCH = """
    def handler(event, context): return {"one": event["i"]}
    def batch_handler(events, contexts):
        if any(e.get("bad") for e in events): raise ValueError("bad one")
        if any(e.get("short") for e in events): return []
        return [RuntimeError("its own") if e.get("own") else {"i": e["i"], "size": len(events)} for e in events]
    """


def batch_worker(tmp_path, **batch):
    return worker(tmp_path, BATCH, config={"meta": False, "batch": {"max_size": 4, "max_delay_ms": 0, **batch}})


def test_a_batch_takes_what_waits_and_no_more_than_it_may(tmp_path):
    with batch_worker(tmp_path) as child:
        assert child.ready()["max_batch"] == 4
        child.send(*[child.request_frame({"i": i}) for i in range(10)], frames.pack([frames.STOP]))
        got = [child.outcome().json for _ in range(10)]
        assert [g["i"] for g in got] == list(range(10))
        assert [g["size"] for g in got] == [4] * 8 + [2] * 2
        assert child.process.wait(DEADLINE_S) == 0


def test_one_that_comes_alone_is_a_batch_too_and_so_are_those_after_it(tmp_path):
    source = "def batch_handler(events, contexts): return [len(events)] * len(events)\n"
    with worker(tmp_path, source, config={"batch": {"max_size": 8}}) as child:
        child.ready()
        assert child.ask(0).json == 1
        child.send(*(child.request_frame(n) for n in range(3)))
        assert [child.outcome().json for _ in range(3)] == [3, 3, 3]
        assert child.ask(0).json == 1


def test_a_woken_worker_was_woken_for_a_request(tmp_path):
    """Taking an answer out of the socket does not wake who waits at its other end for the next request."""
    with worker(tmp_path, ECHO) as child:
        child.ready()
        child.ask(0)
        before = switches(child.process.pid)
        for n in range(200):
            child.send(child.request_frame(n))
            until(lambda: asleep(child.process.pid))  # it has answered, and waits for the next
            child.outcome()
            until(lambda: asleep(child.process.pid))
        assert switches(child.process.pid) - before < 300


def switches(pid: int) -> int:
    """How often the process's main thread gave up the processor by itself."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_batch_waits_for_more_where_it_is_told_to(tmp_path):
    with batch_worker(tmp_path, max_delay_ms=DEADLINE_S * 1000) as child:
        child.ready()
        for i in range(4):
            child.send(child.request_frame({"i": i}))
        assert [child.outcome().json["size"] for _ in range(4)] == [4] * 4
    with batch_worker(tmp_path, max_delay_ms=1) as child:
        child.ready()
        assert child.ask({"i": 1}).json == {"i": 1, "size": 1}


def test_one_bad_request_does_not_fail_its_batch(tmp_path):
    with batch_worker(tmp_path) as child:
        child.ready()
        child.send(*[child.request_frame({"i": i, "bad": i == 2}) for i in range(3)], child.request_frame(b"{"))
        first, *rest = [child.outcome() for _ in range(4)]
        # Decoding comes first, so the payload that is none is answered first.
        assert (first.n, first.error and first.error[0]) == (4, "BAD_PAYLOAD")
        assert [o.json for o in rest] == [{"one": 0}, {"one": 1}, {"one": 2}]
        child.send(*[child.request_frame({"i": i, "own": i == 1}) for i in range(3)])
        outcomes = [child.outcome() for _ in range(3)]
        assert [o.error[1] if o.error else o.json["i"] for o in outcomes] == [0, "RuntimeError: its own", 2]


def test_a_batch_with_too_few_results_is_an_error_for_each(tmp_path):
    with batch_worker(tmp_path) as child:
        child.ready()
        child.send(*[child.request_frame({"i": i, "short": True}) for i in range(2)])
        for _ in range(2):
            error = child.outcome().error
            assert error is not None
            assert error[0] == "BATCH_RESULT_MISMATCH"
            assert "0 results" in error[1]


def test_a_batch_handler_alone_serves_and_retries_one_by_one(tmp_path):
    source = "def batch_handler(events, contexts):\n    return [1 / e['i'] for e in events]\n"
    with worker(tmp_path, source, config={"batch": {"max_size": 3, "max_delay_ms": 0}}) as child:
        child.ready()
        child.send(*[child.request_frame({"i": i}) for i in (1, 0, 2)])
        outcomes = [child.outcome() for _ in range(3)]
        assert outcomes[0].json == 1
        assert outcomes[1].error is not None
        assert "ZeroDivisionError" in outcomes[1].error[1]
        assert outcomes[2].json == 0.5


# -- pulse, signals, end ----------------------------------------------------------------------------------------------


def test_the_pulse_tells_where_a_handler_hangs_and_lets_held_answers_out(tmp_path):
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    source = f"def wait():\n    return open({str(fifo)!r}).read()\ndef handler(e, c):\n    return wait() if e else 1\n"
    with worker(tmp_path, source) as child:
        child.ready()
        child.send(child.request_frame({}), child.request_frame({"wait": 1}))
        until(lambda: "in wait" in child.ask_pulse())
        first, second, third = child.ask_pulse().split(", called from ")
        assert first.endswith("__init__.py:2 in wait")
        assert second.endswith("__init__.py:4 in handler")
        assert "serving.py" in third
        assert child.outcome().n == 1


def test_it_ends_with_the_agents_end_even_in_the_middle_of_a_handler(tmp_path):
    with worker(tmp_path, "import threading\ndef handler(e, c): threading.Event().wait()\n") as child:
        child.ready()
        child.send(child.request_frame({}))
        until(lambda: "in handler" in child.ask_pulse() or "wait" in child.ask_pulse())
        child.pulse.close()
        child.sock.close()
        assert child.process.wait(DEADLINE_S) == 1


def test_it_ends_at_the_end_of_the_stream(tmp_path):
    with worker(tmp_path, ECHO) as child:
        child.ready()
        child.sock.close()
        assert child.process.wait(DEADLINE_S) == 0


def test_it_dies_with_a_parent_that_is_killed_though_others_hold_its_sockets(tmp_path):
    """The kernel's doing: neither socket shows an end here, and the handler never returns."""
    ours, theirs = socket.socketpair()
    pulse, their_pulse = socket.socketpair()
    folder = write_function(tmp_path / "code", "while True: pass\n")
    os.symlink(Path(functions.__file__).parent, tmp_path / "functions")
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-c", {BOOT!r}, {str(tmp_path)!r}], pass_fds=(3, 4))
print(child.pid, flush=True)
time.sleep(1000)
"""
    code = f"import os\nos.dup2({theirs.fileno()}, 103); os.dup2({their_pulse.fileno()}, 104)\n"
    code += "os.dup2(103, 3); os.dup2(104, 4); os.set_inheritable(3, True); os.set_inheritable(4, True)\n" + parent
    env = {"PATH": os.environ["PATH"], "MARRAM_FD": "3", "MARRAM_PULSE_FD": "4"}
    fds = (theirs.fileno(), their_pulse.fileno())
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, pass_fds=fds)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    watch = os.pidfd_open(pid)
    frames.send_all(ours, frames.pack([frames.CONFIG, function_config(folder)]))
    pulse.settimeout(DEADLINE_S)
    pulse.send(b"?")
    assert pulse.recv(1000)
    process.kill()
    process.wait()
    assert select.select([watch], [], [], DEADLINE_S)[0]
    for each in (ours, theirs, pulse, their_pulse, process.stdout):
        each.close()
    os.close(watch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_group_do_not_end_it(tmp_path, number):
    with worker(tmp_path, ECHO) as child:
        child.ready()
        os.killpg(child.process.pid, number)
        assert child.ask({"a": 1}).json["got"] == {"a": 1}
        assert child.stop() == 0


def test_stop_does_not_wait_for_a_functions_own_threads_but_runs_its_exit_hooks(tmp_path):
    source = """
        import atexit, threading
        threading.Thread(target=threading.Event().wait).start()
        atexit.register(lambda: print("bye"))
        def handler(e, c): return 1
        """
    with worker(tmp_path, source) as child:
        child.ready()
        assert child.stop() == 0
        assert "bye" in child.output


def test_a_functions_own_children_do_not_hold_its_sockets(tmp_path):
    source = """
        import subprocess
        def handler(e, c): return subprocess.Popen(["sleep", "1000"], close_fds=False).pid
        """
    with worker(tmp_path, source) as child:
        child.ready()
        pid = child.ask({}).json
        assert child.stop() == 0
        try:
            with pytest.raises(EOFError):
                child.next_frame()
        finally:
            os.kill(pid, signal.SIGKILL)
