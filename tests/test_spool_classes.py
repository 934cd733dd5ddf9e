"""The spool's classes: what goes when room is short, what is over its time, and what becomes of a week offline."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.cloud import spool_thread
from agent.cloud.spool import KINDS, Spool
from agent.cloud.spool_clock import Anchor, resumed
from agent.cloud.spool_layout import VERSION
from agent.cloud.spool_records import pack_outbound
from agent.messages import Inbound, Outbound, Properties
from agent.settings import SpoolClass
from tests import spool_backlog
from tests.mqtt_kit import until
from tests.test_promises import figure
from tests.test_spool import committed, opened, record, run, topics

DAY_S = 86_400.0


class Moved:
    """The machine's clocks, moved by hand."""

    def __init__(self, wall: float = 1_795_000_000.0) -> None:
        self.boot = "one"
        self._wall = wall
        self._uptime = 100.0

    def wall(self) -> float:
        return self._wall

    def uptime(self) -> float:
        return self._uptime

    def move(self, seconds: float) -> None:
        self._wall += seconds
        self._uptime += seconds

    def reboot(self, wall: float) -> None:
        self.boot, self._uptime, self._wall = self.boot + "+", 5.0, wall


async def synced(spool: Spool) -> None:
    """Returns when all that was appended or forgotten is on the disk."""
    await spool.dead_letters()


def test_captures_worth_least_go_first_of_these_the_oldest(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, capture=SpoolClass(max_count=4))
        for n, value in enumerate((0.9, 0.1, 0.5, 0.1, 0.9, 0.0, 0.5)):
            spool.append("cloud", "capture", record(n), value=value)
        await synced(spool)
        assert await topics(spool) == ["t/0", "t/2", "t/4", "t/6"]
        assert spool.dropped == {"capture": 3}
        await spool.close()

    run(main)


def test_a_class_keeps_to_its_own_quota_and_leaves_the_others_alone(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, result=SpoolClass(max_bytes=5500), report=SpoolClass(max_count=3))
        for n in range(10):
            for kind in KINDS:
                spool.append("local" if n % 2 and kind == "result" else "cloud", kind, record(n, 1000))
        await synced(spool)
        assert await topics(spool, kind="report") == ["t/7", "t/8", "t/9"]
        results = await topics(spool, kind="result") + await topics(spool, "local", "result")
        assert sorted(results) == ["t/5", "t/6", "t/7", "t/8", "t/9"], "the oldest of all links"
        assert len(await topics(spool, kind="capture")) == 10
        assert spool.dropped == {"report": 7, "result": 5}
        summary = spool.summary()["backlog"]["cloud"]
        assert summary["report"]["count"] == 3
        assert 3000 < summary["report"]["bytes"] < 3600
        await spool.close()

    run(main)


def test_no_report_goes_while_there_is_something_else(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, max_bytes=100_000)
        chance = random.Random(1)
        left = Counter[str]()
        for n in range(600):
            kind = chance.choice(KINDS)
            spool.append("cloud", kind, record(n, 1000), value=chance.random())
            await synced(spool)
            gone = Counter(spool.dropped) - left
            left = Counter(spool.dropped)
            assert not gone["report"] or not (spool.backlog("cloud", "result") or spool.backlog("cloud", "capture"))
            assert not gone["result"] or not spool.backlog("cloud", "capture")
        assert left["capture"] > 100
        await spool.close()

    run(main)


def test_newest_first_where_it_is_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, capture=SpoolClass(newest_first=True))
        await committed(spool, *(("cloud", "capture", record(n)) for n in range(5)))
        first = await spool.next_batch("cloud", "capture", 2)
        assert [each.out.topic for each in first] == ["t/4", "t/3"]
        await committed(spool, ("cloud", "capture", record(5)))
        assert await topics(spool, kind="capture", limit=2) == ["t/5", "t/2", "t/1", "t/0"]
        await spool.close()

    run(main)


def test_what_is_over_its_time_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_thread, "IDLE_S", 0.01)
    monkeypatch.setattr(spool_thread, "LOOK_S", 0.01)

    async def main() -> None:
        clock = Moved()
        spool = await opened(tmp_path, clock, result=SpoolClass(ttl_s=60))
        expiring = Outbound("t/x", b"", properties=Properties(expiry_s=30))
        await committed(
            spool, ("cloud", "result", record(1)), ("cloud", "report", record(2)), ("cloud", "report", expiring)
        )
        clock.move(31)
        await committed(spool, ("cloud", "result", record(3)))
        assert await topics(spool, kind="report") == ["t/2"], "its message expiry is kept"
        assert spool.expired == {"report": 1}
        clock.move(30)
        await until(lambda: spool.backlog("cloud", "result") == 1, "its end, with nothing else going on")
        assert await topics(spool, kind="result") == ["t/3"]
        assert spool.expired == {"report": 1, "result": 1}
        assert spool.dropped == {}
        await spool.close()

    run(main)


def test_what_is_being_sent_is_not_over_its_time_and_counts_once(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Moved()
        spool = await opened(tmp_path, clock, result=SpoolClass(ttl_s=60))
        await committed(spool, ("cloud", "result", record(1)))
        (sent,) = await spool.next_batch("cloud", "result", 10)
        clock.move(61)
        await committed(spool, ("cloud", "result", record(2)))
        assert spool.backlog("cloud") == 2
        spool.handed_over([sent.seq])
        assert spool.backlog("cloud") == 1  # so that the next result does not overtake this one
        assert spool.expired == {}
        assert await topics(spool, kind="result") == ["t/2"]
        await spool.close()

    run(main)


def test_time_goes_on_over_restarts_and_whatever_the_clock_says(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Moved(wall=1000.0)  # 1970: nobody has set it yet
        limits = {"result": SpoolClass(ttl_s=DAY_S)}
        spool = await opened(tmp_path, clock, **limits)
        await committed(spool, ("cloud", "result", record(1)))
        clock.move(3600)
        clock._wall = 1_795_000_000.0  # and now somebody has
        await committed(spool, ("cloud", "result", record(2)))
        await spool.close()
        clock.move(3600)
        spool = await opened(tmp_path, clock, **limits)
        assert await topics(spool) == ["t/1", "t/2"], "a clock that was set is no time that passed"
        await spool.close()
        clock.reboot(clock.wall() + 12 * 3600)
        spool = await opened(tmp_path, clock, **limits)
        assert spool.backlog("cloud") == 2
        await spool.close()
        clock.reboot(1000.0)  # it forgot again
        spool = await opened(tmp_path, clock, **limits)
        assert spool.backlog("cloud") == 2
        clock.move(11 * 3600)
        await committed(spool, ("cloud", "result", record(3)))
        assert await topics(spool) == ["t/3"]
        assert spool.expired == {"result": 2}
        await spool.close()

    run(main)


@pytest.mark.parametrize(
    ("before", "wall", "uptime", "boot", "expected"),
    [
        (None, 5.0, 1.0, "a", 5.0),
        (Anchor(1e6, 1.8e9, 100, "a"), 9e9, 160, "a", 1e6 + 60),
        (Anchor(1e6, 1.8e9, 100, "a"), 1.8e9 + 500, 3, "b", 1e6 + 500),
        (Anchor(1e6, 1.8e9, 100, "a"), 100.0, 3, "b", 1e6),
        (Anchor(1e6, 100.0, 100, "a"), 1.8e9, 3, "b", 1e6),
    ],
)
def test_the_age_is_never_earlier_than_it_was(
    before: Anchor | None, wall: float, uptime: float, boot: str, expected: float
) -> None:
    assert resumed(before, wall, uptime, boot) == expected


def test_a_week_offline_keeps_to_quotas_and_times(tmp_path: Path) -> None:
    """A result a minute, a sample each half, a status an hour; the machine boots twice a day."""
    week_s, step_s = int(7 * DAY_S), 1800
    limits: dict[str, Any] = {
        "max_bytes": 3 << 20,
        "result": SpoolClass(ttl_s=2 * DAY_S, max_bytes=3 << 19),
        "capture": SpoolClass(max_count=3000, ttl_s=5 * DAY_S),
    }

    async def main() -> None:
        clock, chance = Moved(), random.Random(7)
        said: Counter[str] = Counter()
        spool = await opened(tmp_path, clock, **limits)
        for now in range(0, week_s, step_s):
            if now and now % 43_200 == 0:
                await spool.close()
                clock.reboot(clock.wall() + 60)
                spool = await opened(tmp_path, clock, **limits)
            for kind, every_s in (("report", 3600), ("result", 60), ("capture", 30)):
                for n in range(now, now + step_s, every_s):
                    if n % every_s == 0:
                        spool.append("cloud", kind, Outbound(f"{kind}/{n}", b"x" * 300), value=chance.random())
                        said[kind] += 1
            clock.move(step_s)
            await synced(spool)
            for kind in KINDS:
                assert said[kind] == spool.backlog("cloud", kind) + spool.dropped[kind] + spool.expired[kind]
            sizes = {kind: each["bytes"] for kind, each in spool.summary()["backlog"].get("cloud", {}).items()}
            assert spool.backlog("cloud", "capture") <= 3000
            assert sum(sizes.values()) <= 3 << 20
            assert sizes.get("result", 0) <= 3 << 19
        assert spool.backlog("cloud", "report") == said["report"]
        assert 2 * DAY_S / 60 - 40 <= spool.backlog("cloud", "result") <= 2 * DAY_S / 60 + 40
        assert spool.dropped["report"] == spool.dropped["result"] == 0
        assert spool.dropped["capture"] > 15_000
        assert (tmp_path / "spool.db").stat().st_size < 6 << 20
        found = await topics(spool, kind="result")
        assert found == sorted(found, key=lambda topic: int(topic[7:]))
        await spool.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_large_records_are_files_that_come_and_go_with_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "spool.db.files"

    async def main() -> None:
        spool = await opened(tmp_path, file_bytes=4096, capture=SpoolClass(max_count=2))
        await committed(spool, ("cloud", "result", record(0, 100)), ("cloud", "result", record(1, 9000)))
        assert len(os.listdir(folder)) == 1
        await committed(spool, *(("cloud", "capture", record(n, 9000)) for n in range(2, 6)))
        assert len(os.listdir(folder)) == 3, "what was dropped took its file along"
        await spool.close()
        (folder / "0badf00d-1.record").write_bytes(b"of nobody")
        (folder / "half").write_bytes(b"")
        spool = await opened(tmp_path, file_bytes=4096, capture=SpoolClass(max_count=2))
        assert len(os.listdir(folder)) == 3
        batch = await spool.next_batch("cloud", "result", 10)
        assert [len(each.out.payload) for each in batch] == [101, 9001]
        spool.handed_over([each.seq for each in batch])
        for name in os.listdir(folder):
            (folder / name).write_bytes(b"torn")
        assert await topics(spool) == []
        assert spool.dropped == {"capture": 4}  # two for the quota, two that are damaged
        await synced(spool)
        await spool.close()
        assert os.listdir(folder) == []

    run(main)


def test_dead_letters_are_kept_tried_again_and_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, dead=SpoolClass(max_count=3))
        await committed(spool, *(("cloud", "result", record(n)) for n in range(5)))
        batch = await spool.next_batch("cloud", "result", 5)
        for each in batch[:4]:
            spool.bury(each.seq, "too large")
        spool.handed_over([batch[4].seq])
        found = await spool.dead_letters()
        assert [(each.topic, each.why, each.kind) for each in found] == [
            (f"t/{n}", "too large", "result") for n in (1, 2, 3)
        ]
        assert spool.dead == 3
        assert spool.backlog("cloud") == 0
        await spool.exhume([batch[2].seq], retry=True)
        again = await spool.next_batch("cloud", "result", 5)
        assert [each.id for each in again] == [batch[2].id], "by the name that it had"
        await spool.close()
        spool = await opened(tmp_path)
        assert spool.dead == 2
        assert await topics(spool) == ["t/2"]
        await spool.exhume(None, retry=False)
        assert await spool.dead_letters() == []
        await spool.close()

    run(main)


LAYOUT_1 = """
CREATE TABLE records (seq INTEGER PRIMARY KEY, link TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
                      body BLOB NOT NULL);
CREATE INDEX records_by_link ON records (link, seq);
CREATE TABLE inbox (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
PRAGMA user_version = 1;
"""


def test_the_first_layout_is_taken_over(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "spool.db")
    db.executescript(LAYOUT_1)
    for n in range(10):
        body = pack_outbound(record(n))
        kind = "capture" if n % 2 else "result"
        db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", (n + 1, "cloud", kind, len(body) + 64, body))
    db.commit()
    db.close()

    async def main() -> None:
        spool = await opened(tmp_path, capture=SpoolClass(max_count=3))
        assert spool.backlog("cloud") == 10
        await committed(spool, ("cloud", "report", record(10)))
        assert await topics(spool, kind="result") == ["t/0", "t/2", "t/4", "t/6", "t/8"]
        assert await topics(spool, kind="capture") == ["t/5", "t/7", "t/9"]
        await spool.close()

    run(main)
    db = sqlite3.connect(tmp_path / "spool.db")
    assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    db.close()


@pytest.mark.parametrize("what", ["log cut", "log broken", "file cut", "file of zeros"])
def test_an_agent_starts_on_whatever_a_disk_has_left(tmp_path: Path, what: str) -> None:
    async def filled() -> None:
        spool = await opened(tmp_path)
        await committed(spool, *(("cloud", "result", record(n, 3000)) for n in range(500)))
        os.link(tmp_path / "spool.db-wal", tmp_path / "wal")  # closing folds it into the file and removes it
        os.link(tmp_path / "spool.db", tmp_path / "db")
        for name in ("wal", "db"):
            (tmp_path / f"{name}.copy").write_bytes((tmp_path / name).read_bytes())
        await spool.close()

    run(filled)
    for name in ("spool.db", "wal", "db"):
        (tmp_path / name).unlink()
    db, log = (tmp_path / "db.copy").read_bytes(), (tmp_path / "wal.copy").read_bytes()
    if what == "log cut":
        log = log[: len(log) // 2 + 77]
    elif what == "log broken":
        log = log[: len(log) // 2] + os.urandom(len(log) - len(log) // 2)
    elif what == "file cut":
        db, log = db[: len(db) // 2 + 77] or b"SQLite format 3\0", b""
    else:
        db, log = bytes(max(len(db), 4096)), b""
    (tmp_path / "spool.db").write_bytes(db)
    (tmp_path / "spool.db-wal").write_bytes(log)

    async def main() -> None:
        spool = await opened(tmp_path)
        before = spool.backlog("cloud")
        found = await topics(spool)
        assert found == [f"t/{n}" for n in range(len(found))]
        assert before >= len(found)
        await committed(spool, ("cloud", "report", record(999)))
        assert await topics(spool) == ["t/999"]
        await spool.close()

    run(main)


def test_memory_is_bounded_while_a_disk_is_slow(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, memory_bytes=100_000)
        let_go: list[str] = []
        for kind in ("capture", "result", "report"):
            for _ in range(250):  # in one turn of the loop: nothing is committed meanwhile
                spool.append("cloud", kind, record(0, 1000), lambda kind=kind: let_go.append(kind))
            if kind == "capture":
                assert not spool.takes_requests, "requests stay with their broker"
        assert set(spool.dropped) == {"capture", "result"}
        assert 100 <= spool.backlog("cloud", "capture") <= 101
        assert 95 <= spool.backlog("cloud", "result") <= 105
        assert spool.backlog("cloud", "report") == 250
        spool.put_inbox("k", Inbound("local", "t", b"x"), ["function:f"])
        await synced(spool)
        assert len(let_go) == 750
        assert spool.takes_requests
        await spool.close()

    run(main)


def test_a_backlog_goes_out_whole_and_in_order_beside_what_comes(
    tmp_path: Path, soak: bool, record_property: Any
) -> None:
    """With --soak a million records, whose figures are kept; no bound on time in a test."""
    records, count = (1_000_000, 20_000) if soak else (5000, 500)
    found = spool_backlog.run(records, count, tmp_path)
    assert found["backlog_at_start"] == records
    figure(record_property, **found)
