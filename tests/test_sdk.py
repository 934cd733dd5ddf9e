"""What a function's author is offered, in a real worker: async handlers, samples, the function's own directory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgpack
import pytest
from worker_kit import BINARY, JSON, MSGPACK, WorkerChild, function_config, until, write_function

from agent.cli import commands
from functions import frames, loading
from tests.agent_kit import CORE, Core, function, subscription
from tests.conftest import Site

# Requests wait until as many as the event says are under way together: the answer tells how many there were.
TOGETHER = """
    import asyncio
    under_way, most, release = set(), 0, None

    async def handler(event, context):
        global most, release
        release = release or asyncio.Event()
        under_way.add(context.request)
        most = max(most, len(under_way))
        if event.get("hang"):
            await asyncio.Event().wait()
        if len(under_way) >= event["wait for"]:
            release.set()
        await release.wait()
        under_way.discard(context.request)
        return {"request": context.request, "most": most, "topic": context.topic}
"""


def worker(tmp_path: Path, source: str, **config: object) -> WorkerChild:
    return WorkerChild(function_config(write_function(tmp_path / "code", textwrap.dedent(source)), **config))


def test_an_async_handler_has_several_requests_under_way_each_with_its_own_context(tmp_path):
    with worker(tmp_path, TOGETHER, concurrency=8) as child:
        facts = child.ready()
        assert (facts["max_batch"], facts["settles_late"]) == (8, True)
        child.send(*(child.request_frame({"wait for": 8}, topic=f"t/{n}") for n in range(8)))
        outcomes = [child.outcome() for _ in range(8)]
        assert sorted(each.n for each in outcomes) == list(range(1, 9))
        for each in outcomes:
            assert each.json["request"] == each.request == f"made-{each.n}"
            assert (each.json["topic"], each.json["most"]) == (f"t/{each.n - 1}", 8)


def test_no_more_are_under_way_than_it_may_have(tmp_path):
    with worker(tmp_path, TOGETHER, concurrency=3) as child:
        child.ready()
        child.send(*(child.request_frame({"wait for": 3}) for _ in range(20)))
        assert {child.outcome().json["most"] for _ in range(20)} == {3}


def test_an_async_request_that_takes_too_long_is_answered_and_harms_no_other(tmp_path):
    with worker(tmp_path, TOGETHER, timeout_s=0.2) as child:
        child.ready()
        child.send(child.request_frame({"hang": True}))
        late = child.outcome()
        assert late.n == 1
        assert late.error is not None
        assert late.error[0] == "FUNCTION_TIMEOUT"
        assert "0.2 s" in late.error[1]
        assert child.ask({"wait for": 1}).json["request"] == "made-2"


def test_one_that_does_not_let_itself_be_cancelled_is_answered_once(tmp_path):
    source = """
        import asyncio
        stubborn = None

        async def handler(event, context):
            global stubborn
            if event == "release":
                stubborn.set()
                return "released"
            stubborn = asyncio.Event()
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                await stubborn.wait()
            return "late"
    """
    with worker(tmp_path, source, timeout_s=0.1) as child:
        child.ready()
        assert child.ask("first").error[0] == "FUNCTION_TIMEOUT"
        assert child.ask("release").json == "released"
        assert child.ask("release").json == "released"
        assert child.stop() == 0


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("raise RequestError('MINE', 'no')", "MINE"),
        ("raise SystemExit(3)", "FUNCTION_RAISED"),
        ("raise KeyboardInterrupt", "FUNCTION_RAISED"),
        ("raise asyncio.CancelledError", "FUNCTION_RAISED"),
        ("raise asyncio.TimeoutError", "FUNCTION_RAISED"),
        ("return float('nan')", "RESULT_NOT_ENCODABLE"),
    ],
)
def test_what_an_async_handler_raises_fails_that_request_alone(tmp_path, statement, code):
    source = f"""
import asyncio
from functions.sdk import RequestError
async def handler(event, context):
    if event: {statement}
    return "well"
"""
    with worker(tmp_path, source) as child:
        child.ready()
        child.send(child.request_frame(True), child.request_frame(b"{"), child.request_frame(False))
        outcomes = {each.n: each for each in (child.outcome() for _ in range(3))}
        assert (outcomes[1].error[0], outcomes[2].error[0]) == (code, "BAD_PAYLOAD")
        assert outcomes[3].json == "well"


def test_stop_lets_async_requests_finish_what_they_do(tmp_path):
    source = """
        import asyncio
        async def handler(event, context):
            print("begun", event)
            await asyncio.sleep(0.05)
            return event
    """
    with worker(tmp_path, source, concurrency=2) as child:
        child.ready()
        child.send(*(child.request_frame(n) for n in range(5)), frames.pack([frames.STOP]))
        assert sorted(child.outcome().json for _ in range(5)) == list(range(5))
        assert child.process.wait(30) == 0


def test_an_async_worker_ends_with_the_stream_and_ignores_a_groups_signals(tmp_path):
    with worker(tmp_path, TOGETHER) as child:
        child.ready()
        child.process.send_signal(signal.SIGINT)
        child.process.send_signal(signal.SIGTERM)
        assert child.ask({"wait for": 1}).json["most"] == 1
        child.send(child.request_frame({"hang": True}))
        child.sock.close()
        assert child.process.wait(30) == 0


def test_the_pulse_tells_where_an_async_handler_blocks_the_loop(tmp_path):
    source = """
        import time
        async def handler(event, context):
            print("in it")
            time.sleep(100)
    """
    with worker(tmp_path, source) as child:
        child.ready()
        child.send(child.request_frame(0))
        until(lambda: "in it" in child.output)
        assert "__init__.py:5 in handler" in child.ask_pulse()


def test_large_async_answers_come_whole_while_requests_come_in(tmp_path):
    source = """
        async def handler(event, context):
            return event * 2
    """
    with worker(tmp_path, source, encoding="binary") as child:
        child.ready()
        body = bytes(range(256)) * 8192
        for n in range(1, 9):
            child.send(child.request_frame(body[n:]))
            got = child.outcome()
            assert (got.n, got.outputs[0][1], got.outputs[0][2]) == (n, BINARY, body[n:] * 2)


@pytest.mark.parametrize(
    ("source", "is_async"),
    [
        ("async def handler(event, context): return 1", True),
        ("def handler(event, context): return 1", False),
        ("class H:\n    async def __call__(self, event, context): return 1\nhandler = H()", True),
        ("class H:\n    def __call__(self, event, context): return 1\nhandler = H()", False),
        ("import functools\nasync def f(a, event, context): return 1\nhandler = functools.partial(f, 0)", True),
        (
            "import functools\nasync def f(event, context): return 1\n"
            "@functools.wraps(f)\ndef handler(event, context): return f(event, context)",
            True,
        ),
    ],
)
def test_async_handlers_are_told_apart_and_asyncio_loaded_only_for_them(tmp_path, source, is_async):
    source = "import sys\nknown = 'asyncio' in sys.modules\n" + source
    with worker(tmp_path, source) as child:
        assert child.ready()["settles_late"] == is_async
        assert child.ask(0).json == 1
    assert loading.load("told-apart", str(tmp_path / "code")).is_async == is_async


@pytest.mark.parametrize("word", ["", "async "])
def test_a_batch_handler_is_a_plain_function_beside_a_plain_one(tmp_path, word):
    source = f"""
        {"" if word else "async "}def handler(event, context): return 1
        {word}def batch_handler(events, contexts): return events
    """
    with worker(tmp_path, source) as child:
        code, message = child.failed()
    assert code == "HANDLER_INVALID"
    assert "batch_handler is a plain function" in message


# -- samples ----------------------------------------------------------------------------------------------------------


def test_a_handler_keeps_samples_with_the_result_or_with_what_it_gives(tmp_path):
    source = """
        def handler(event, context):
            context.capture()
            context.capture(reason="odd one", input={"own": event}, output=[0.5])
            context.capture(output=None)
            return {"a": 1}
    """
    with worker(tmp_path, source, meta=False) as child:
        child.ready()
        child.send(child.request_frame({"x": 1}))
        header, body = child.next_frame()
    explicit, odd, none = header[6]
    assert explicit == ["explicit", None, None]
    assert odd == ["odd one", [JSON, 15], [JSON, 5]]
    assert none == ["explicit", None, [JSON, 4]]
    assert body == b'{"a":1}' + b'{"own":{"x":1}}' + b"[0.5]" + b"null"


def test_samples_come_in_the_requests_encoding_and_beside_an_answer_without_a_result(tmp_path):
    source = """
        def handler(event, context):
            context.capture(input=b"raw", output=event)
    """
    with worker(tmp_path, source) as child:
        child.ready()
        child.send(child.request_frame(msgpack.packb([1]), content_type=MSGPACK, wanted=True))
        header, body = child.next_frame()
        answer = header[5]
        [(_, given, made)] = header[6]
        assert (given, made) == ([MSGPACK, 5], [MSGPACK, 2])
        assert body[answer[1] :] == msgpack.packb(b"raw") + msgpack.packb([1])


@pytest.mark.parametrize("what", ["reason=''", "reason='a' * 65", "reason='a\\nb'", "reason=3"])
def test_a_reason_must_be_a_short_text(tmp_path, what):
    with worker(tmp_path, f"def handler(event, context): context.capture({what})") as child:
        child.ready()
        code, message = child.ask(0).error
    assert code == "FUNCTION_RAISED"
    assert "1 to 64 printable" in message


def test_a_sample_that_cannot_be_encoded_is_an_error(tmp_path):
    with worker(tmp_path, "def handler(event, context): context.capture(output=float('inf'))") as child:
        child.ready()
        assert child.ask(0).error[0] == "RESULT_NOT_ENCODABLE"


# -- the rest of the context ------------------------------------------------------------------------------------------


def test_the_functions_own_directory(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    source = """
        def handler(event, context):
            (context.state_dir / "file").write_text("kept")
            return str(context.state_dir)
    """
    with worker(tmp_path, source, state_dir=str(own)) as child:
        child.ready()
        assert child.ask(0).json == str(own)
    assert (own / "file").read_text() == "kept"


def test_names_of_the_sdk_that_bring_numpy_are_loaded_when_asked_for():
    program = (
        "import functions.sdk as sdk, sys; assert 'numpy' not in sys.modules; sdk.Model; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)
    with pytest.raises(ImportError):
        from functions.sdk import Nothing  # type: ignore[attr-defined]  # noqa: F401


# -- in a whole agent -------------------------------------------------------------------------------------------------


def test_an_async_function_in_an_agent(site: Site) -> None:
    """Many at once in one worker, its own time-outs, samples to the cloud, and notes that outlive all of it."""
    routes = [subscription("local", "in/+", "function:patient"), subscription("function:patient", "#", "local")]
    body = function("patient", marram={"Concurrency": 8}, Timeout=1)
    cloud = site.observer()
    cloud.subscribe(f"marram/{CORE}/capture/patient")
    with site.core() as core:
        core.deploy(core.group("d1", resources=[], functions=[body], subscriptions=routes))
        pids = core.worker_pids()
        device = site.device()
        device.subscribe("replies")
        events = [{"seconds": 0.5}] * 8 + [{"seconds": 60, "keep": "never"}, {"seconds": 0, "keep": "worth it"}]
        for n, event in enumerate(events):
            device.publish("in/x", json.dumps(event), response_topic="replies", correlation=b"%d" % n)
        answers = {m.properties.CorrelationData: json.loads(m.payload) for m in device.wait_for(len(events))}
        assert max(answers[b"%d" % n]["under_way"] for n in range(8)) > 3, "they were under way together"
        assert answers[b"8"]["error"]["code"] == "FUNCTION_TIMEOUT"
        assert "error" not in answers[b"9"]
        assert core.worker_pids() == pids, "no worker was ended for the one that was late"
        [sample] = [json.loads(m.payload) for m in cloud.wait_for(1)]
        assert (sample["reason"], sample["input"]) == ("worth it", events[9])
        assert sample["output"] == {"seconds": 0}
        core.deploy(core.group("d2", resources=[], functions=[body], subscriptions=routes))
        core.stop()
        core.start()
        core.wait_ready("patient")
        place = commands.Place(core.config)
        answer = commands.infer(place, "patient", b'{"seconds": 0}', topic=None, content_type=None, timeout_s=30)
        assert json.loads(answer.payload)["notes"] == len(events) + 1
    device.close()
    cloud.close()


def test_infer_sends_json_as_msgpack_and_shows_the_answer_as_json(site: Site) -> None:
    routes = [subscription("local", "in/+", "function:echo")]
    with site.core() as core:
        core.deploy(core.group("d1", resources=[], functions=[function("echo")], subscriptions=routes))
        over = ["--broker", site.local.url, "--core", CORE, "--topic", "in/x"]
        for where in ([], over):
            told = _infer(core, "--msgpack", "--data", '{"image": {"base64": "AAH/"}, "n": [1, 2.5]}', *where)
            answer = json.loads(told.stdout)
            assert answer["echo"] == {"image": {"base64": "AAH/"}, "n": [1, 2.5]}
            raw = _infer(core, "--content-type", "application/octet-stream", "--data", "plain bytes", *where)
            assert raw.stdout == b"plain bytes"
        assert _infer(core, input=b'{"from": "stdin"}').stdout.startswith(b'{"echo":{"from":"stdin"}')
        wrong = _infer(core, "--msgpack", "--data", '{"image": {"base64": "?"}}')
        assert wrong.returncode == 78
        assert b"PAYLOAD_NOT_JSON" in wrong.stderr


def _infer(core: Core, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "agent", "infer", "echo", "--config", str(core.config), *words]
    return subprocess.run(command, capture_output=True, input=input, timeout=60)
