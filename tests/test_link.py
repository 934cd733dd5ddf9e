"""The link against a real mosquitto: it comes back from everything and loses nothing of QoS 1."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import settings
from agent.errors import ConfigError, RejectedError, TransientError
from agent.messages import Inbound, Outbound, Properties
from agent.mqtt.link import Link
from tests.mqtt_kit import Mosquitto, PlainClient, Relay, free_port, mosquitto, until


class Side:
    """A link with what it received. `ack` says whether messages are acknowledged at once."""

    def __init__(self, url: str, client_id: str = "press-7", *, core: str = "press-7", ack: bool = True, **more: Any):
        link_settings = {key: more.pop(key) for key in ("ca", "cert", "key", "keepalive_s") if key in more}
        self.received: list[Inbound] = []
        self.in_force: list[frozenset[str]] = []
        self.ups = self.downs = 0
        self.ack = ack
        more.setdefault("max_backoff_s", 0.2)
        self.link = Link(
            settings.Link("local", url, **link_settings),
            client_id=client_id,
            core=core,
            on_message=self._on_message,
            on_up=self._on_up,
            on_down=self._on_down,
            on_filters=self.in_force.append,
            **more,
        )

    async def up(self, *filters: str) -> Link:
        self.link.set_filters(filters)
        self.link.start()
        await until(lambda: self.link.connected, "the link is up")
        await self.link.settled()
        return self.link

    async def got(self, count: int) -> list[bytes]:
        await until(lambda: len(self.received) >= count, f"{count} messages")
        return [message.payload for message in self.received]

    async def publish(self, topic: str, payload: bytes = b"", qos: int = 1) -> None:
        done = asyncio.Event()
        self.link.publish(Outbound(topic, payload, qos), done.set)
        await asyncio.wait_for(done.wait(), 20)

    async def error(self, code: str) -> str:
        await until(lambda: (self.link.last_error or "").startswith(code + ":"), code)
        return str(self.link.last_error)

    def _on_message(self, message: Inbound) -> None:
        self.received.append(message)
        if self.ack:
            self.link.ack(message.ticket)

    def _on_up(self) -> None:
        self.ups += 1

    def _on_down(self) -> None:
        self.downs += 1


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(bounded())


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with mosquitto(tmp_path / "broker", persistence=True) as running:
        yield running


async def plain(broker: Mosquitto, *filters: str, name: str = "watch-1", **options: Any) -> PlainClient:
    client = await asyncio.to_thread(PlainClient, broker.port, name, **options)
    for one in filters:
        await asyncio.to_thread(client.subscribe, one)
    return client


def test_a_request_and_its_answer_with_all_properties(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url)
        link = await side.up("sensors/+/motion")
        device = await plain(broker, "answers/#")
        await asyncio.to_thread(
            device.publish,
            "sensors/1/motion",
            b"\x00\x01",
            response_topic="answers/é",
            correlation=b"\xff\x00",
            content_type="application/msgpack",
            user=[("a", "1"), ("a", "2")],
        )
        await side.got(1)
        request = side.received[0]
        assert (request.link, request.topic, request.payload, request.qos) == (
            "local",
            "sensors/1/motion",
            b"\x00\x01",
            1,
        )
        assert request.properties == Properties(
            "application/msgpack", "answers/é", b"\xff\x00", None, (("a", "1"), ("a", "2"))
        )
        assert (link.protocol, link.receive_maximum, link.generation) == (5, 100, 1)
        answer = Properties("application/json", None, b"\xff\x00", 30, (("model", "m"),))
        link.publish(Outbound("answers/é", b"{}", 1, properties=answer))
        message = (await asyncio.to_thread(device.wait_for, 1))[0]
        assert message.topic == "answers/é"
        assert message.properties is not None
        assert message.properties.CorrelationData == b"\xff\x00"
        assert message.properties.UserProperty == [("model", "m"), ("core", "press-7")]
        assert message.properties.ContentType == "application/json"
        await link.stop()
        device.close()

    run(main)


def test_large_messages_come_whole_in_both_directions(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url)
        await side.up("in")
        device = await plain(broker, "out")
        payload = bytes(range(256)) * 8000
        await asyncio.to_thread(device.publish, "in", payload)
        await asyncio.to_thread(device.publish, "in", b"small")
        assert await side.got(2) == [payload, b"small"]
        await side.publish("out", payload)
        await asyncio.to_thread(device.wait_for, 1)
        assert device.payloads() == [payload]
        await side.link.stop()
        device.close()

    run(main)


def test_acknowledgements_leave_in_the_order_of_receipt(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url, ack=False)
        link = await side.up("in")
        device = await plain(broker)
        for number in range(4):
            await asyncio.to_thread(device.publish, "in", b"%d" % number)
        await side.got(4)
        tickets = [message.ticket for message in side.received]
        for ticket in (tickets[2], tickets[1], tickets[3], tickets[1]):
            link.ack(ticket)
        await side.publish("fence")
        assert broker.logged("Received PUBACK from press-7") == 0
        assert link.unacknowledged == 4
        link.ack(tickets[0])
        await side.publish("fence")
        acks = [line for line in broker.log.read_text().splitlines() if "Received PUBACK from press-7" in line]
        assert [line.split("Mid: ")[1].split(",")[0] for line in acks] == ["1", "2", "3", "4"]
        assert link.unacknowledged == 0
        await link.stop()
        device.close()

    run(main)


def test_what_was_not_acknowledged_comes_again_after_a_restart_of_the_broker(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url, ack=False)
        link = await side.up("in")
        device = await plain(broker)
        for number in range(5):
            await asyncio.to_thread(device.publish, "in", b"%d" % number)
        await side.got(5)
        link.ack(side.received[0].ticket)
        await side.publish("fence")
        await asyncio.to_thread(broker.stop)
        await until(lambda: side.downs == 1, "the link is down")
        with pytest.raises(TransientError, match="LINK_DOWN"):
            link.publish(Outbound("t", b""))
        await asyncio.to_thread(broker.start)
        assert (await side.got(9))[5:] == [b"1", b"2", b"3", b"4"]
        assert all(message.dup for message in side.received[5:])
        link.ack(side.received[1].ticket)  # of the earlier connection
        assert link.unacknowledged == 4
        for message in side.received[5:]:
            link.ack(message.ticket)
        await side.publish("fence")
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
        await until(lambda: side.ups == 3, "the link is back")
        await asyncio.to_thread(device.publish, "in", b"last")
        assert (await side.got(10))[9:] == [b"last"]
        await link.stop()
        device.close()

    run(main)


def test_messages_in_flight_when_the_broker_dies_are_sent_again_once(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url)
        link = await side.up()
        done: list[int] = []
        broker.pause()  # what is sent now reaches the kernel only
        for number in range(250):
            link.publish(Outbound("out", b"%d" % number), lambda number=number: done.append(number))
        link.publish(Outbound("out", b"at most once", 0))
        await asyncio.sleep(0)
        await asyncio.to_thread(broker.kill)
        await until(lambda: side.downs == 1, "the link is down")
        assert len(link.outstanding) == 250
        await asyncio.to_thread(broker.start)
        await until(lambda: len(done) == 250, "all acknowledged")
        assert done == list(range(250))
        assert not link.outstanding
        assert broker.logged("Received PUBLISH from press-7") == 250
        await link.stop()

    run(main)


def test_it_is_back_after_each_of_many_kills_with_its_filters(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url, retained=("kept",))
        link = await side.up("in", "kept")
        for round_ in range(4):
            await asyncio.to_thread(broker.kill if round_ % 2 else broker.stop)
            await asyncio.to_thread(broker.start)
            await until(lambda round_=round_: side.ups == round_ + 2, "the link is back")
            await link.settled()
            device = await plain(broker)
            await asyncio.to_thread(device.publish, "in", b"%d" % round_)
            await side.got(round_ + 1)
            device.close()
        assert [message.payload for message in side.received] == [b"0", b"1", b"2", b"3"]
        assert link.generation == 5
        await link.stop()

    run(main)


def test_a_broker_that_is_down_at_the_start_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        broker = Mosquitto(tmp_path)
        side = Side(broker.url)
        side.link.set_filters(["in"])
        side.link.start()
        assert "Check that it runs" in await side.error("BROKER_UNREACHABLE")
        await side.link.settled()  # a link that is down keeps nobody
        await asyncio.to_thread(broker.start)
        await until(lambda: side.link.connected, "the link is up")
        assert side.link.last_error is None
        await side.link.stop()
        broker.kill()

    run(main)


def test_own_messages_do_not_come_back(broker: Mosquitto) -> None:
    async def main() -> None:
        local, cloud = Side(broker.url, "press-7-local"), Side(broker.url, "press-7")
        await local.up("t/#")
        await cloud.up("t/#")
        device = await plain(broker, "t/#")
        await local.publish("t/own", b"own")
        await asyncio.to_thread(device.publish, "t/fence", b"fence")
        assert await local.got(1) == [b"fence"]  # by noLocal
        assert await cloud.got(1) == [b"fence"]  # by the user property
        await cloud.publish("t/other", b"other")
        assert cloud.link.unacknowledged == 0
        assert broker.logged("Received PUBACK from press-7 ") == 2  # the dropped one too
        await local.link.stop()
        await cloud.link.stop()
        device.close()

    run(main)


def test_filters_are_reconciled(broker: Mosquitto) -> None:
    async def main() -> None:
        many = [f"m/{number}" for number in range(20)]
        first = Side(broker.url)
        await first.up("stale/#", "in/#", *many)
        assert first.in_force[0] == frozenset(["stale/#", "in/#", *many])
        assert broker.logged("Received SUBSCRIBE from press-7") == 3
        await first.link.stop()
        second = Side(broker.url, known_filters=first.in_force[-1])
        link = await second.up("in/#", "m/19")
        await until(lambda: second.in_force[-1:] == [frozenset(["in/#", "m/19"])], "stale filters are gone")
        device = await plain(broker)
        for topic in ("stale/1", "m/3", "m/19"):
            await asyncio.to_thread(device.publish, topic, topic)
        assert await second.got(1) == [b"m/19"]
        link.set_filters(["new/#", "bad/#/filter"])
        await link.settled()
        await until(lambda: second.in_force[-1] == frozenset(["new/#"]), "the filters are changed")
        assert second.in_force[-2] == frozenset(["in/#", "m/19", "new/#"])  # new ones before old ones are gone
        for topic in ("in/1", "new/1"):
            await asyncio.to_thread(device.publish, topic, topic)
        assert (await second.got(2))[1:] == [b"new/1"]
        await link.stop()
        device.close()

    run(main)


def test_retained_messages_come_once_unless_wanted_at_each_connection(broker: Mosquitto) -> None:
    async def main() -> None:
        device = await plain(broker)
        await asyncio.to_thread(device.publish, "once", b"once", 1, True)
        await asyncio.to_thread(device.publish, "always", b"always", 1, True)
        side = Side(broker.url, retained=["always"])
        await side.up("once", "always")
        assert sorted(await side.got(2)) == [b"always", b"once"]
        assert all(message.retain for message in side.received)
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
        await until(lambda: side.ups == 2, "the link is back")
        assert (await side.got(3))[2:] == [b"always"]
        await asyncio.to_thread(device.publish, "once", b"now")
        assert (await side.got(4))[3:] == [b"now"]
        await side.link.stop()
        device.close()

    run(main)


def test_the_brokers_receive_maximum_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        with mosquitto(tmp_path, options=("max_inflight_messages 3",)) as broker:
            side = Side(broker.url)
            link = await side.up()
            done: list[int] = []
            for number in range(300):
                link.publish(Outbound("out", b"%d" % number), lambda number=number: done.append(number))
            await until(lambda: len(done) == 300, "all acknowledged")
            assert done == list(range(300))
            assert (side.downs, link.generation) == (0, 1)
            await link.stop()

    run(main)


def test_messages_over_the_brokers_maximum_packet_size_are_refused_here(tmp_path: Path) -> None:
    async def main() -> None:
        with mosquitto(tmp_path, options=("max_packet_size 2000",)) as broker:
            side = Side(broker.url)
            link = await side.up()
            for qos in (0, 1):
                with pytest.raises(RejectedError, match="MESSAGE_TOO_LARGE"):
                    link.publish(Outbound("out", b"x" * 2000, qos))
            await side.publish("out", b"x" * 1900)
            assert (side.downs, len(link.outstanding)) == (0, 0)
            await link.stop()

    run(main)


@pytest.mark.parametrize("topic", ["", "a/+", "#", "nul\0", "x" * 65536, "half \ud800 letter"])
def test_topics_at_which_a_broker_would_close_the_connection_are_refused(broker: Mosquitto, topic: str) -> None:
    async def main() -> None:
        side = Side(broker.url)
        link = await side.up()
        with pytest.raises(RejectedError, match="BAD_TOPIC"):
            link.publish(Outbound(topic, b""))
        with pytest.raises(RejectedError, match="BAD_TOPIC"):
            link.publish(Outbound("fine", b"", properties=Properties(response_topic=topic)))
        await side.publish("fine")
        assert side.downs == 0
        await link.stop()

    run(main)


def test_a_message_that_the_broker_refuses_is_logged_and_settled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        acl = tmp_path / "acl"
        acl.write_text("topic readwrite allowed/#\n")
        with mosquitto(tmp_path / "broker", options=(f"acl_file {acl}",)) as broker:
            side = Side(broker.url)
            await side.up()
            await side.publish("forbidden/1", b"secret payload")
            await side.publish("allowed/1")
            assert side.link.dropped == 1
            await side.link.stop()

    run(main)
    assert "forbidden/1 was refused by the broker (not authorized)" in caplog.text
    assert "secret payload" not in caplog.text


def test_a_wrong_password_is_said_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch()
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "press", "Pa:ss w/ord"], check=True)
    passwords.chmod(0o644)

    async def main() -> None:
        with mosquitto(tmp_path / "b", options=(f"password_file {passwords}",), anonymous=False) as broker:
            side = Side(f"mqtt://press:hunter2@127.0.0.1:{broker.port}")
            side.link.start()
            error = await side.error("LOGIN_REFUSED")
            assert "Check the user name and password" in error
            assert "hunter2" not in error
            await side.link.stop()
            right = Side(f"mqtt://press:Pa%3Ass%20w%2Ford@127.0.0.1:{broker.port}")
            await right.up()
            await right.link.stop()

    caplog.set_level(logging.DEBUG)
    run(main)
    assert "LOGIN_REFUSED" in caplog.text
    assert "hunter2" not in caplog.text
    assert "w/ord" not in caplog.text


def test_a_name_that_cannot_be_resolved(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        side = Side("mqtt://no-such-broker.invalid:1883")
        side.link.start()
        assert "no-such-broker.invalid" in await side.error("BROKER_NAME_UNKNOWN")
        await side.link.stop()

    run(main)
    assert caplog.text.count("BROKER_NAME_UNKNOWN") == 1  # once, however often it is tried


@pytest.mark.parametrize("url", ["http://host", "mqtt://", "host:1883", "mqtt://host:port", "mqtt://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="BAD_BROKER_URL"):
        Side(url)


def test_another_client_with_the_same_id(broker: Mosquitto) -> None:
    async def main() -> None:
        # mosquitto closes the older connection without a word, so what can be said is that it happens again and again.
        one, two = Side(broker.url, max_backoff_s=0.05), Side(broker.url, max_backoff_s=0.05)
        one.link.start()
        two.link.start()
        await until(lambda: "CONNECTION_UNSTABLE" in str(one.link.last_error), "said")
        assert "no other client uses this client id" in str(one.link.last_error)
        await two.link.stop()
        await until(lambda: one.link.connected, "back")
        await one.link.stop()

    run(main)


def test_a_broker_that_says_that_the_connection_was_taken_over(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        relay = await Relay(broker.port).start()
        relay.refuse = lambda first: b"\x20\x03\x00\x00\x00" + b"\xe0\x01\x8e"  # CONNACK, DISCONNECT
        side = Side(f"mqtt://127.0.0.1:{relay.port}")
        side.link.start()
        await until(lambda: side.downs >= 1, "taken over")
        relay.refuse = lambda first: None
        await until(lambda: side.link.connected, "back")
        await side.link.stop()
        await relay.cut()

    run(main)
    assert "CONNECTION_TAKEN_OVER" in caplog.text
    assert "Give each core its own name" in caplog.text


def test_a_broker_that_falls_silent_is_left(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url, keepalive_s=1)
        link = await side.up("in")
        broker.pause()
        await until(lambda: side.downs == 1, "noticed")
        assert "BROKER_SILENT" in (link.last_error or "")
        broker.resume()
        await until(lambda: link.connected, "back")
        await asyncio.sleep(2.5)  # two keep-alives: pings are sent and answered
        assert side.downs == 1
        await link.stop()

    run(main)


def test_the_will_is_published_when_the_agent_vanishes_and_not_when_it_stops(broker: Mosquitto) -> None:
    async def main() -> None:
        watcher = await plain(broker, "state")
        relay = await Relay(broker.port).start()
        side = Side(f"mqtt://127.0.0.1:{relay.port}", will=lambda: Outbound("state", b"offline", 1, True))
        link = await side.up()
        relay.reset()
        assert (await asyncio.to_thread(watcher.wait_for, 1))[0].payload == b"offline"
        await until(lambda: side.ups == 2, "back")
        await link.stop(Outbound("state", b"stopped", 1, True))
        await asyncio.to_thread(watcher.wait_for, 2)
        await asyncio.to_thread(watcher.publish, "state", b"fence")
        await asyncio.to_thread(watcher.wait_for, 3)
        assert watcher.payloads() == [b"offline", b"stopped", b"fence"]
        assert not link.connected
        await link.stop()
        await relay.cut()
        watcher.close()

    run(main)


def _version(first: bytes) -> int:
    return first[first.index(b"MQTT") + 4]


@pytest.mark.parametrize("answer", [b"", b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"], ids=["silent", "311", "v5"])
def test_where_mqtt_5_is_refused_3_1_1_is_spoken(broker: Mosquitto, answer: bytes) -> None:
    async def main() -> None:
        relay = await Relay(broker.port).start()
        relay.refuse = lambda first: answer if _version(first) == 5 else None
        side = Side(f"mqtt://127.0.0.1:{relay.port}", ack=False)
        link = await side.up("in")
        assert (link.protocol, link.receive_maximum) == (4, 20)
        device = await plain(broker, "out")
        await asyncio.to_thread(device.publish, "in", b"1", response_topic="not seen")
        await side.got(1)
        assert side.received[0].properties == Properties()
        await side.publish("out", b"answer")
        await asyncio.to_thread(device.wait_for, 1)
        relay.reset()
        assert (await side.got(2))[1] == b"1"
        assert side.received[1].dup
        link.ack(side.received[1].ticket)
        await side.publish("fence")
        # The broker learns MQTT 5 (an update, say): after the next failure of 3.1.1 it is found out.
        relay.refuse = lambda first: b"" if _version(first) == 4 else None
        relay.reset()
        await until(lambda: side.ups == 3, "back")
        assert link.protocol == 5
        await link.stop()
        await relay.cut()
        device.close()

    run(main)


def test_a_relay_without_a_broker_behind_it_is_not_taken_for_a_refusal_of_mqtt_5(broker: Mosquitto) -> None:
    async def main() -> None:
        relay = await Relay(broker.port).start()
        seen: list[int] = []

        def refuse(first: bytes) -> bytes | None:
            seen.append(_version(first))
            return b"" if len(seen) in (1, 3, 4) else None  # the second, in 3.1.1, finds the broker by chance

        relay.refuse = refuse
        side = Side(f"mqtt://127.0.0.1:{relay.port}")
        link = await side.up()
        await until(lambda: len(seen) >= 4 and link.connected, "up")
        while link.protocol == 4:  # a second coincidence: it is mended at the next connection at the latest
            relay.reset()
            await until(lambda: not link.connected, "down")
            await until(lambda: link.connected, "up")
            relay.refuse = lambda first: b"" if _version(first) == 4 else None
        assert link.protocol == 5
        await link.stop()
        await relay.cut()

    run(main)


def test_a_broker_that_answers_nonsense_or_nothing(broker: Mosquitto) -> None:
    async def main() -> None:
        relay = await Relay(broker.port).start()
        relay.refuse = lambda first: b"HTTP/1.1 400 Bad Request\r\n\r\n"
        side = Side(f"mqtt://127.0.0.1:{relay.port}")
        side.link.start()
        await until(lambda: relay.connections >= 3, "tried again")
        assert side.link.last_error is not None
        assert "BROKER_" in side.link.last_error
        relay.refuse = lambda first: None
        await until(lambda: side.link.connected, "up")
        await side.link.stop()
        await relay.cut()

    run(main)


def test_a_message_at_which_the_broker_closes_the_connection_is_given_up(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        relay = await Relay(broker.port).start()
        relay.inspect = lambda chunk: b"poison" not in chunk
        side = Side(f"mqtt://127.0.0.1:{relay.port}", max_backoff_s=0.05)
        link = await side.up()
        done: list[str] = []
        for topic in ("good/1", "poison", "good/2"):
            link.publish(Outbound(topic, b""), lambda topic=topic: done.append(topic))
        await until(lambda: len(done) == 3, "all settled")
        assert link.dropped == 1
        await side.publish("good/3")
        assert link.connected
        await link.stop()
        await relay.cut()

    run(main)
    assert "a message on poison was given up" in caplog.text


def test_an_exception_of_a_callback_does_not_end_the_link(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        side = Side(broker.url)
        link = await side.up("in/#")
        handled = link._on_message

        def raising(message: Inbound) -> None:
            handled(message)
            if message.payload == b"bad":
                raise ValueError("not this one")

        link._on_message = raising
        device = await plain(broker)
        await asyncio.to_thread(device.publish, "in/1", b"bad")
        await asyncio.to_thread(device.publish, "in/2", b"good")
        assert await side.got(2) == [b"bad", b"good"]
        link.publish(Outbound("out", b""), lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        await side.publish("out")
        assert side.downs == 0
        await link.stop()
        device.close()

    run(main)
    assert "a message on in/1 could not be handled" in caplog.text


def test_a_congested_link_drops_qos_0_and_keeps_qos_1(broker: Mosquitto) -> None:
    async def main() -> None:
        side = Side(broker.url)
        link = await side.up()
        broker.pause()
        payload = b"x" * 100_000
        while not link.dropped:
            link.publish(Outbound("out", payload, 0))
            await asyncio.sleep(0)
        done: list[int] = []
        for number in range(20):
            link.publish(Outbound("out", payload), lambda number=number: done.append(number))
        broker.resume()
        await until(lambda: len(done) == 20, "all acknowledged")
        assert side.downs == 0
        await link.stop()

    run(main)


def test_stopping_while_the_broker_is_away_takes_no_time() -> None:
    async def main() -> None:
        side = Side(f"mqtt://127.0.0.1:{free_port()}")
        side.link.start()
        await side.error("BROKER_UNREACHABLE")
        await asyncio.wait_for(side.link.stop(Outbound("state", b"")), 1)
        never = Side("mqtt://127.0.0.1:1")
        await never.link.stop()

    run(main)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem, and server and client certificates by it."""
    where = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA", "-days", "2")
    openssl("req", "-x509", *curve, "-keyout", "x.key", "-out", "other.pem", "-subj", "/CN=Other CA", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (where / "names").write_text("subjectAltName=DNS:localhost\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", "names"),
        )
    return where


class TestTls:
    """TLS with a CA of our own; each way in which it fails is in test_tls_links."""

    @pytest.fixture
    def secure(self, pki: Path, tmp_path: Path) -> Any:
        listener = (f"cafile {pki}/ca.pem", f"certfile {pki}/server.pem", f"keyfile {pki}/server.key")
        with mosquitto(tmp_path / "tls", listener=(*listener, "require_certificate true")) as running:
            yield running

    def test_a_client_certificate_lets_us_in(self, pki: Path, secure: Mosquitto) -> None:
        async def main() -> None:
            url = f"mqtts://localhost:{secure.port}"
            options: dict[str, Any] = {"ca": pki / "ca.pem", "cert": pki / "client.pem", "key": pki / "client.key"}
            one, two = Side(url, "one", core="a", **options), Side(url, "two", core="b", **options)
            await one.up("t/#")
            await two.up("t/#")
            payload = bytes(range(256)) * 4000
            await two.publish("t/1", payload)
            for number in range(200):
                two.link.publish(Outbound("t/2", b"%d" % number))
            assert await one.got(201) == [payload, *(b"%d" % number for number in range(200))]
            secure.kill()
            await until(lambda: one.downs == 1, "down")
            secure.start()
            await until(lambda: one.ups == 2, "back")
            await one.link.stop()
            await two.link.stop()

        run(main)

    def test_a_port_that_speaks_no_tls(self, broker: Mosquitto, pki: Path) -> None:
        async def main() -> None:
            side = Side(f"mqtts://localhost:{broker.port}", ca=pki / "ca.pem")
            side.link.start()
            await until(lambda: side.link.last_error, "an error")
            assert str(side.link.last_error).split(":")[0] in ("TLS_FAILED", "BROKER_UNREACHABLE", "BROKER_CLOSED")
            await side.link.stop()

        run(main)
