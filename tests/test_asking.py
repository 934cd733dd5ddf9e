"""What a function may ask of the agent through its context, in a whole agent: other functions, shadows, publishing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cli import commands
from functions.errors import CodedError
from functions.sdk import Context
from tests.agent_kit import Core, function, subscription
from tests.mqtt_kit import Mosquitto, PlainClient, wait_until


@dataclass
class Bench:
    core: Core
    device: PlainClient

    def ask(self, event: Any, function: str = "asker") -> Any:
        body = json.dumps(event).encode()
        place = commands.Place(self.core.config)
        answer = commands.infer(place, function, body, topic=None, content_type=None, timeout_s=30)
        return answer.payload if not isinstance(answer.payload, bytes) else json.loads(answer.payload)

    def do(self, do: str, **event: Any) -> Any:
        said = self.ask({"do": do, **event})
        return said["gave"] if "gave" in said else (said["raised"], said["code"], said["handled"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("bench")
    broker = Mosquitto(directory / "broker")
    functions = [
        function("asker", Timeout=10),
        function("waiter", arn="function:asker", Timeout=10),
        function("asker-async", arn="function:asker_async", Timeout=10),
        function("echo"),
    ]
    routes = [subscription("function:asker", "now/#", "local")]
    with broker, Core(directory / "core", local={"url": broker.url}) as core:
        core.wait_linked()
        device = PlainClient(broker.port, "device")
        device.subscribe("now/#")
        core.deploy({"DeploymentId": "d", "Functions": functions, "Subscriptions": routes})
        yield Bench(core, device)


def test_a_function_has_the_answer_of_another(bench: Bench) -> None:
    assert bench.do("invoke", function="echo", payload={"n": 1})["echo"] == {"n": 1}
    assert bench.do("invoke", function="echo", payload={"n": 1}, wait=False) is None


def test_its_threads_have_their_answers_while_the_handler_waits_for_them(bench: Bench) -> None:
    assert bench.do("many", count=40) == list(range(40))


def test_requests_that_come_meanwhile_are_served_in_their_order(bench: Bench) -> None:
    for n in range(20):
        bench.device.publish("unheard", str(n))
    assert [bench.do("many", count=5) for _ in range(5)] == [list(range(5))] * 5


def test_what_goes_wrong_is_raised(bench: Bench) -> None:
    assert bench.do("invoke", function="nobody") == ("InvokeError", "FUNCTION_NOT_DEPLOYED", False)
    waits = {"do": "invoke", "function": "asker", "payload": {"do": "invoke", "function": "echo"}}
    found = bench.do("invoke", function="waiter", payload=waits)
    assert (found["raised"], found["code"]) == ("InvokeError", "INVOKE_CYCLE")
    unknown = bench.do("invoke", function="waiter", payload={"do": "nothing of the kind"})
    assert unknown == ("InvokeError", "FUNCTION_RAISED", True)


def test_a_shadow_is_got_updated_and_deleted(bench: Bench) -> None:
    assert bench.do("shadow", what="round") == {"delta": {"on": True}, "versions": 1, "delta_after": None}
    assert bench.do("shadow", what="conflict") == ("ShadowError", 409, None)
    assert bench.do("shadow", what="delete")["version"] >= 2
    assert bench.do("shadow", what="delete") == ("ShadowError", 404, None)


def test_what_is_published_at_once_is_out_also_where_the_handler_raises(bench: Bench) -> None:
    assert bench.ask({"do": "now", "n": 5})["error"]["code"] == "FUNCTION_RAISED"
    wait_until(lambda: any(m.topic == "now/here" for m in list(bench.device.received)), "the message")
    assert json.loads(bench.device.received[-1].payload)["n"] == 5


def test_an_asynchronous_handler_asks_from_threads(bench: Bench) -> None:
    assert bench.ask(10, "asker-async") == list(range(10))
    answer = bench.ask("wrong", "asker-async")
    assert answer["code"] == "BAD_CALL"


def test_without_a_core_there_is_nobody_to_ask() -> None:
    context = Context("f", "r", "t")
    for ask in (lambda: context.invoke("x"), lambda: context.shadow("x"), lambda: context.publish_now("t", 1)):
        with pytest.raises(CodedError) as caught:
            ask()
        assert caught.value.code == "NO_CORE"


def test_the_samples_are_typed(tmp_path: Path) -> None:
    """What a function's author imports is there under the names that the page gives."""
    import functions.sdk as sdk

    for name in sdk.__all__:
        assert getattr(sdk, name) is not None
