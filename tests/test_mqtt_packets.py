"""The pure parts of the link: packets beside paho's coding of them, what is in flight, filters, a stream's cutting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from agent import loop
from agent.errors import RejectedError, TransientError
from agent.messages import NO_PROPERTIES, Outbound, Properties
from agent.mqtt import codec
from agent.mqtt.connecting import Address, address_of, host_and_port
from agent.mqtt.filters import FilterSet
from agent.mqtt.in_flight import GIVE_UP_AFTER, MAX_OUTSTANDING, WINDOW, Arrivals, Departures
from agent.mqtt.stream import MAX_PACKET_BYTES, PacketStream
from agent.settings import Link as LinkSettings

# What MQTT allows in a text and paho takes too.
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff"), max_size=40)
TOPIC = TEXT.filter(lambda text: text != "" and "+" not in text and "#" not in text)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
PROPERTIES = st.builds(
    Properties,
    st.none() | TEXT,
    st.none() | TOPIC,
    st.none() | st.binary(max_size=300),
    st.none() | st.integers(0, 2**32 - 1),
    PAIRS,
)
RESULTS = st.builds(
    lambda content_type, request, others: Properties(content_type, user=(("request", request), *others)),
    st.none() | TEXT,
    TEXT | st.sampled_from(["r-1", "r" * 900, "r" * 1100]),
    PAIRS,
)
MESSAGE = st.builds(
    Outbound, TOPIC, st.binary(max_size=1100), st.integers(0, 1), st.booleans(), st.one_of(PROPERTIES, RESULTS)
)


def packed_by_paho(properties: Properties) -> bytes:
    theirs = PahoProperties(PacketTypes.PUBLISH)
    if properties.content_type is not None:
        theirs.ContentType = properties.content_type
    if properties.response_topic is not None:
        theirs.ResponseTopic = properties.response_topic
    if properties.correlation is not None:
        theirs.CorrelationData = properties.correlation
    if properties.expiry_s is not None:
        theirs.MessageExpiryInterval = properties.expiry_s
    if properties.user:
        theirs.UserProperty = list(properties.user)
    return bytes(theirs.pack())


@given(PROPERTIES)
@example(NO_PROPERTIES)
def test_properties_are_coded_as_paho_codes_them(properties: Properties) -> None:
    assert codec.encode_properties(properties) == packed_by_paho(properties)


@given(MESSAGE, st.integers(1, 65535), st.booleans(), st.lists(st.tuples(TEXT, TEXT), max_size=1))
def test_a_publish_comes_back_as_it_was(out: Outbound, packet_id: int, v5: bool, extra: list[tuple[str, str]]) -> None:
    encoded = b"".join(codec.user_property(*pair) for pair in extra)
    packet = codec.encode_publish(encoded if v5 else None, out, packet_id)
    length, at = codec.read_varint(packet, 1, len(packet))
    assert at + length == len(packet)
    assert (packet[0] >> 1 & 3, packet[0] & 1) == (out.qos, out.retain)
    topic, back_id, properties, payload = codec.decode_publish(packet[0], packet, at, len(packet), v5)
    assert (topic, payload) == (out.topic, out.payload)
    assert back_id == (packet_id if out.qos else 0)
    expected = out.properties._replace(user=(*out.properties.user, *extra))
    assert properties == (expected if v5 else NO_PROPERTIES)


@given(st.binary(max_size=80), st.binary(max_size=20), st.sampled_from([0x30, 0x32]), st.booleans())
def test_no_bytes_do_worse_than_malformed(body: bytes, next_packet: bytes, first: int, v5: bool) -> None:
    try:
        _, _, _, payload = codec.decode_publish(first, body + next_packet, 0, len(body), v5)
        assert len(payload) <= len(body)
    except codec.MalformedError:
        pass


def test_properties_that_a_broker_would_take_offence_at_are_refused() -> None:
    for bad in (
        Properties(content_type="a\0b"),
        Properties(content_type="\ud800"),
        Properties(user=(("k", "x" * 65536),)),
        Properties(correlation=b"x" * 65536),
    ):
        with pytest.raises(RejectedError, match="BAD_PROPERTY"):
            codec.encode_properties(bad)
    with pytest.raises(RejectedError, match="BAD_TOPIC"):
        codec.encode_properties(Properties(response_topic="a/#"))


@given(st.integers(0, 268_435_455))
def test_variable_byte_integers(value: int) -> None:
    encoded = codec.varint(value)
    assert codec.read_varint(encoded, 0, len(encoded)) == (value, len(encoded))


class Collector:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, bytes]] = []

    def packet(self, first: int, data: bytes, at: int, end: int) -> None:
        self.packets.append((first, data[at:end]))

    publish = packet

    def puback(self, packet_id: int, reason: int) -> None:
        assert reason == 0
        self.packets.append((codec.PUBACK, packet_id.to_bytes(2, "big")))

    def stream_lost(self, error: Exception | None) -> None:
        pass


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.one_of(st.binary(max_size=20), st.binary(min_size=120, max_size=20000)))
    ),
    st.lists(st.integers(1, 5000)),
)
def test_a_stream_is_cut_into_packets_wherever_it_is_cut_by_the_network(
    packets: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    async def main() -> None:
        collector = Collector()
        stream = PacketStream(collector)
        data = b"".join(bytes((first,)) + codec.varint(len(body)) + body for first, body in packets)
        at = 0
        for size in [*cuts, *[60_000] * (len(data) // 60_000 + 1)]:
            chunk = data[at : at + size]
            at += len(chunk)
            stream.get_buffer(-1)[: len(chunk)] = chunk
            if chunk:
                stream.buffer_updated(len(chunk))
        assert at == len(data)
        assert collector.packets == packets

    asyncio.run(main())


def test_where_packets_come_quickly_acknowledgements_wait_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.mqtt.stream.ACKNOWLEDGE_S", 0.3)  # else a slow machine would never be quick
    ping, ours, theirs = b"\xd0\x00", codec.puback(1), codec.puback(2)

    async def main() -> None:
        peer: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        server = await asyncio.start_server(lambda *both: peer.set_result(both), "127.0.0.1", 0)
        collector = Collector()
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: PacketStream(collector), *server.sockets[0].getsockname()
        )
        reader, writer = await peer

        async def until(true: Callable[[], bool], *, say: bytes = b"") -> None:
            while not true():
                writer.write(say)
                stream.write(ping)
                await reader.readexactly(2)

        await asyncio.wait_for(until(lambda: stream.brisk, say=ping), 30)
        stream.write_late(ours, "mine")
        assert stream.not_acknowledged == ["mine"]
        stream.write(ping)
        assert await reader.read(100) == ours + ping
        assert stream.not_acknowledged == []

        stream.write_late(ours, "mine")
        writer.write(theirs)  # which by itself does not wake the stream
        assert await reader.readexactly(4) == ours
        assert not stream.brisk
        assert collector.packets[-1] == (codec.PUBACK, b"\0\2")
        stream.write_late(theirs, "mine")
        assert stream.not_acknowledged == []
        assert await reader.readexactly(4) == theirs
        stream.abort()
        server.close()

    loop.run(main())


@pytest.mark.parametrize("data", [b"\x30\xff\xff\xff\xff\x01", b"\x30" + codec.varint(MAX_PACKET_BYTES + 1)])
def test_a_length_that_is_none_or_too_large_ends_the_stream(data: bytes) -> None:
    async def main() -> None:
        collector = Collector()
        stream = PacketStream(collector)
        stream.get_buffer(-1)[: len(data)] = data
        stream.buffer_updated(len(data))
        stream.connection_lost(None)
        assert collector.packets == []

    asyncio.run(main())


def encode(out: Outbound, packet_id: int) -> bytes:
    return codec.encode_publish(None, out, packet_id)


class Wire:
    """What left, as (DUP, payload), with the packet ids."""

    def __init__(self) -> None:
        self.left: list[tuple[bool, bytes]] = []
        self.ids: list[int] = []

    def __call__(self, packet: bytes) -> None:
        length, at = codec.read_varint(packet, 1, len(packet))
        _, packet_id, _, payload = codec.decode_publish(packet[0], packet, at, at + length, False)
        self.left.append((bool(packet[0] & codec.DUP), payload))
        self.ids.append(packet_id)


def numbered(departures: Departures, numbers: range) -> None:
    for number in numbers:
        departures.send(Outbound("t", b"%d" % number), None, encode)


def test_departures_keep_to_the_window_and_leave_in_order() -> None:
    departures, wire = Departures(), Wire()
    departures.connected(wire, 3, None)
    numbered(departures, range(10))
    assert len(wire.left) == 3
    done = []
    while departures:
        message = departures.acknowledged(wire.ids[len(done)])
        assert message is not None
        done.append(message.out.payload)
    assert done == [b"%d" % number for number in range(10)]
    assert wire.left == [(False, payload) for payload in done]
    assert departures.acknowledged(1) is None


def test_what_was_in_flight_leaves_again_marked_in_the_first_order_also_through_a_smaller_window() -> None:
    departures, first, second = Departures(), Wire(), Wire()
    departures.connected(first, 5, None)
    numbered(departures, range(7))
    departures.acknowledged(first.ids[0])
    departures.disconnected(False)
    numbered(departures, range(7, 8))
    departures.connected(second, 2, None)
    for at in range(7):
        departures.acknowledged(second.ids[at])
    assert second.left == [(number < 6, b"%d" % number) for number in range(1, 8)]
    assert second.ids[:5] == first.ids[1:]
    assert len(departures) == 0


def test_packet_ids_in_use_are_not_given_again() -> None:
    departures, wire = Departures(), Wire()
    departures.connected(wire, WINDOW, None)
    numbered(departures, range(3))
    given_out = {departures.next_id() for _ in range(65535 - 3)}
    assert len(given_out) == 65532
    assert not given_out & set(wire.ids)
    assert 0 not in given_out


def test_there_is_a_bound_to_what_waits() -> None:
    departures = Departures()
    numbered(departures, range(MAX_OUTSTANDING))
    with pytest.raises(TransientError, match="LINK_FULL"):
        numbered(departures, range(1))


def test_a_message_is_given_up_only_after_it_was_alone_in_flight() -> None:
    departures = Departures()
    numbered(departures, range(3))
    given_up = None
    lives = 0
    while given_up is None:
        wire = Wire()
        departures.connected(wire, WINDOW, None)
        lives += 1
        # The broker takes offence at 1: what is before it gets its PUBACK where it was sent alone.
        if wire.left[0][1] == b"0" and len(wire.left) == 1:
            departures.acknowledged(wire.ids[0])
        given_up = departures.disconnected(True)
        assert lives < 3 * GIVE_UP_AFTER
    assert given_up.out.payload == b"1"
    assert len(departures) == 1


@given(st.lists(st.integers(0, 9), max_size=40))
def test_acknowledgements_leave_in_order_once(asked: list[int]) -> None:
    arrivals, left = Arrivals(), bytearray()
    arrivals.connected(lambda packet, _: left.extend(packet))
    tickets = [arrivals.add(100 + number) for number in range(10)]
    for number in asked:
        arrivals.ack(tickets[number])
    ready = next((number for number in range(10) if number not in asked), 10)
    assert left == b"".join(codec.puback(100 + number) for number in range(ready))
    assert len(arrivals) == 10 - ready
    arrivals.forget()
    assert arrivals.add(200) not in tickets
    for ticket in tickets:
        arrivals.ack(ticket)
    assert left.count(codec.PUBACK_HEAD) == ready
    assert len(arrivals) == 1


def drive(filters: FilterSet, answer: Callable[[bool, str], int]) -> list[tuple[bool, list[str]]]:
    """Plays the broker until nothing is left to send; gives back the packets."""
    packets = []
    packet_id = 0
    while True:
        subscribe, round_ = filters.next_round()
        if not round_:
            return packets
        for one in round_:
            packet_id += 1
            filters.sent(packet_id, subscribe, one)
            packets.append((subscribe, one))
        for number in range(packet_id - len(round_) + 1, packet_id + 1):
            filters.answered(number, [answer(*packets[number - 1][:1], one) for one in packets[number - 1][1]])


def test_refused_filters_are_settled_and_asked_for_again_later() -> None:
    in_force: list[frozenset[str]] = []
    filters = FilterSet(["old"], in_force.append)
    filters.want(["a", "b"])
    filters.connected(True)
    assert not filters.settled
    assert drive(filters, lambda subscribe, one: 0x87 if one == "b" else 1) == [(True, ["a", "b"]), (False, ["old"])]
    assert filters.settled
    assert filters.refused == {"b": 0x87}
    assert in_force[0] == {"old", "a", "b"}  # before anything is sent
    assert in_force[-1] == {"a"}
    filters.connected(False)
    assert filters.refused == {}
    assert drive(filters, lambda subscribe, one: 1) == [(True, ["a", "b"])]


names = st.sets(st.sampled_from([f"f/{number}" for number in range(20)]))


@given(names, st.lists(st.tuples(names, st.booleans()), max_size=5))
def test_whatever_happens_the_filters_in_force_become_the_wanted_ones(
    known: set[str], steps: list[tuple[set[str], bool]]
) -> None:
    in_force: list[frozenset[str]] = [frozenset(known)]
    filters = FilterSet(known, in_force.append)
    broker = set(known)

    def answer(subscribe: bool, one: str) -> int:
        (broker.add if subscribe else broker.discard)(one)
        return 1 if subscribe else 0

    filters.connected(True)
    for wanted, reconnects in steps:
        if reconnects:
            filters.connected(True)
        filters.want(wanted)
        packets = drive(filters, answer)
        assert broker == wanted == set(in_force[-1])
        assert all(len(packet) <= 8 for _, packet in packets)
        assert filters.settled


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded", Address("127.0.0.1", 1884, False, None, None)),
        ("mqtt://broker", Address("broker", 1883, False, None, None)),
        ("mqtts://broker", Address("broker", 8883, True, None, None)),
        ("mqtt://u:p%40ss@[::1]:99", Address("::1", 99, False, "u", "p@ss")),
    ],
)
def test_addresses(url: str, expected: Address) -> None:
    address = address_of(LinkSettings("local", url, "127.0.0.1:1884"))
    assert address == expected
    assert "p@ss" not in f"{address}{address!r}"


def test_listen_addresses() -> None:
    assert host_and_port("[::1]:5") == ("::1", 5)
    assert host_and_port("127.0.0.1") == ("127.0.0.1", 1883)
