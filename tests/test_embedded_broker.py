"""The embedded broker as the agent runs it: a process of its own that is started again, and the link's 3.1.1 on it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import paho.mqtt.client as paho
import pytest

from agent import settings
from agent.errors import ConfigError
from agent.messages import Inbound, Outbound
from agent.mqtt.broker import EmbeddedBroker, check_listen
from agent.mqtt.link import Link
from tests.mqtt_kit import PlainClient, accepts, free_port, until, wait_until


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(bounded())


def test_the_link_speaks_3_1_1_to_it_and_survives_its_end() -> None:
    async def main() -> None:
        listen = f"127.0.0.1:{free_port()}"
        broker = EmbeddedBroker(listen)
        await broker.start()
        received: list[Inbound] = []

        def on_message(message: Inbound) -> None:
            received.append(message)
            link.publish(Outbound(f"{message.topic}/answer", message.payload), lambda: link.ack(message.ticket))

        link = Link(
            settings.Link("local", "embedded", listen),
            client_id="press-7-local",
            core="press-7",
            will=lambda: Outbound("state", b"offline"),
            max_backoff_s=0.2,
            on_message=on_message,
            on_up=lambda: None,
            on_down=lambda: None,
        )
        link.set_filters(["in"])
        link.start()
        await until(lambda: link.connected, "up")
        await link.settled()
        assert link.protocol == 4

        async def ask(name: str) -> None:
            port = int(listen.split(":")[1])
            device = await asyncio.to_thread(PlainClient, port, name, protocol=paho.MQTTv311)
            await asyncio.to_thread(device.subscribe, "in/answer")
            for number in range(20):
                await asyncio.to_thread(device.publish, "in", b"%d" % number)
            await asyncio.to_thread(device.wait_for, 20)
            assert device.payloads() == [b"%d" % number for number in range(20)]
            device.close()

        await ask("one")
        first, generation = broker.pid, link.generation
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: broker.pid not in (None, first) and link.generation > generation, "both are back")
        await link.settled()
        await ask("two")
        assert len(received) == 40
        await link.stop(Outbound("state", b"bye"))
        await broker.stop()
        assert broker.pid is None
        assert not accepts(int(listen.split(":")[1]))
        await broker.stop()

    run(main)


def test_a_link_that_does_not_know_that_it_is_amqtt_finds_out() -> None:
    async def main() -> None:
        listen = f"127.0.0.1:{free_port()}"
        broker = EmbeddedBroker(listen)
        await broker.start()
        link = Link(
            settings.Link("cloud", f"mqtt://{listen}"),
            client_id="press-7",
            core="press-7",
            max_backoff_s=0.2,
            on_message=lambda message: None,
            on_up=lambda: None,
            on_down=lambda: None,
        )
        link.start()
        await until(lambda: link.connected, "up")
        assert (link.protocol, link.generation) == (4, 1)
        await link.stop()
        await broker.stop()

    run(main)


def test_a_port_that_is_taken_is_said() -> None:
    async def main() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            broker = EmbeddedBroker(f"127.0.0.1:{other.getsockname()[1]}")
            with pytest.raises(ConfigError, match="PORT_IN_USE") as caught:
                await broker.start()
            assert "give the link its url" in caught.value.remedy
            await broker.stop()

    run(main)


@pytest.mark.parametrize("listen", ["", ":", "host:port", "127.0.0.1:99999", "192.0.2.1:1883", "a b"])
def test_where_nobody_can_listen(listen: str) -> None:
    with pytest.raises(ConfigError, match="BAD_LISTEN"):
        check_listen(listen)


def test_it_ends_with_its_parent() -> None:
    port = free_port()
    code = f"""
import asyncio
from agent.mqtt.broker import EmbeddedBroker
async def main():
    broker = EmbeddedBroker("127.0.0.1:{port}")
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    assert accepts(port)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not accepts(port), "the broker has ended")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_ends_on_a_signal_without_a_word(how: signal.Signals) -> None:
    port = free_port()
    # A shell has its background jobs ignore SIGINT, and so whoever runs the tests in one.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from agent.mqtt.broker import main; main('127.0.0.1:{port}')"
    broker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    wait_until(lambda: accepts(port) or broker.poll() is not None, "it listens")
    with PlainClient(port, "one", protocol=paho.MQTTv311) as client:
        client.subscribe("a")
        client.publish("a", b"x")
        client.wait_for(1)
        broker.send_signal(how)
        output, _ = broker.communicate(timeout=10)
    assert broker.returncode == 0
    assert output == b""
