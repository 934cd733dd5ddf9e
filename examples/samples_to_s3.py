"""The cloud's side of capture: takes samples off the capture topics and writes them to S3, for the next training.

    python examples/samples_to_s3.py --broker mqtt://localhost:1883 --to s3://factory-samples/press --format webdataset

A sample is acknowledged once it is in the bucket, so that what is lost here comes again; a sample that comes again is
known by its id and written once. The ids that were written are kept in one SQLite file (`--seen`). S3 is set by boto3's
own variables (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, ..). It ends with Ctrl-C or SIGTERM, with all written.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.capture import formats
from agent.capture.received import Received, parse
from agent.errors import RejectedError

SESSION_S = 7 * 24 * 3600  # for so long the broker keeps what comes while nobody is here
RETRY_S = 5.0


class Seen:
    """The ids that were written, over restarts."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file)
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def __contains__(self, id: str) -> bool:
        return self._db.execute("SELECT 1 FROM seen WHERE id = ?", (id,)).fetchone() is not None

    def add(self, ids: list[str]) -> None:
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(id,) for id in ids])


def put(s3: Any, place: str, format: str, samples: list[Received]) -> None:
    """Writes samples below ``s3://bucket/prefix``. Names follow from the ids: the same again is written over."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    for name, body in formats.files(format, samples):
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"), Body=body)
        print(f"s3://{bucket}/{f'{prefix}/{name}'.lstrip('/')}", flush=True)


def connect(options: argparse.Namespace, arrived: queue.SimpleQueue[paho.MQTTMessage]) -> paho.Client:
    """A client with a session of its own, whose messages go to `arrived` and are acknowledged by hand."""
    url = urlsplit(options.broker)
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, client_id=options.name, protocol=paho.MQTTv5, manual_ack=True
    )
    if url.scheme == "mqtts":
        client.tls_set(ca_certs=options.ca, certfile=options.cert, keyfile=options.key)
    if url.username:
        client.username_pw_set(unquote(url.username), unquote(url.password or ""))
    client.on_connect = lambda *_: client.subscribe(options.filter, qos=1)
    client.on_message = lambda _client, _data, message: arrived.put(message)
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = SESSION_S
    session.ReceiveMaximum = options.batch
    client.connect(url.hostname or "localhost", url.port or 1883, clean_start=False, properties=session)
    client.loop_start()
    return client


class Consumer:
    """Gathers samples, and hands over so many at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._seen = Seen(options.seen)
        self._s3 = boto3.client("s3")
        self._arrived: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self._client = connect(options, self._arrived)
        self._held: list[paho.MQTTMessage] = []
        self._samples: dict[str, Received] = {}
        self._since = time.monotonic()

    def run(self) -> None:
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: stopping.append(number))
        while not stopping:
            try:
                self._take(self._arrived.get(timeout=0.2))
            except queue.Empty:
                pass
            if len(self._held) >= self._options.batch or time.monotonic() - self._since > self._options.seconds:
                self._hand_over()
        self._hand_over()
        self._client.disconnect()

    def _take(self, message: paho.MQTTMessage) -> None:
        self._held.append(message)
        try:
            sample = parse(message.payload)
        except RejectedError as error:
            print(f"{message.topic}: {error}", file=sys.stderr)
            return
        if sample.id not in self._seen:
            self._samples[sample.id] = sample

    def _hand_over(self) -> None:
        """Writes what was gathered, remembers it, and only then acknowledges it."""
        self._since = time.monotonic()
        try:
            put(self._s3, self._options.to, self._options.format, list(self._samples.values()))
        except Exception as error:  # whatever S3 says: it is tried again with the next, and nothing is acknowledged
            print(f"not written, and tried again: {error}", file=sys.stderr)
            self._since += RETRY_S - self._options.seconds
            time.sleep(RETRY_S)
            return
        self._seen.add(list(self._samples))
        for message in self._held:
            self._client.ack(message.mid, message.qos)
        self._held, self._samples = [], {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--broker", required=True, metavar="URL")
    parser.add_argument("--to", required=True, metavar="s3://BUCKET/PREFIX")
    parser.add_argument("--filter", default="marram/+/capture/#")
    parser.add_argument("--format", choices=sorted(formats.FORMATS), default="webdataset")
    parser.add_argument("--batch", type=int, default=500, help="samples a shard at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="the longest that a sample waits here")
    parser.add_argument("--seen", type=Path, default=Path("samples-seen.db"))
    parser.add_argument("--name", default="samples-to-s3", help="the MQTT client id, whose session it is")
    for file in ("ca", "cert", "key"):
        parser.add_argument(f"--{file}")
    Consumer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
