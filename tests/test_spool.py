"""The spool on a real disk: what is committed survives, what is broken is set aside, and the count is exact."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.spool import KINDS, Record, Spool
from agent.cloud.spool_clock import Clock
from agent.cloud.spool_records import (
    DamagedRecordError,
    pack_inbound,
    pack_outbound,
    unpack_inbound,
    unpack_outbound,
)
from agent.errors import ConfigError
from agent.messages import Inbound, Outbound, Properties
from agent.settings import SpoolLimits

ROOT = Path(__file__).parents[1]
DEADLINE_S = 20.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


async def opened(folder: Path, clock: Clock | None = None, **limits: Any) -> Spool:
    spool = Spool(folder / "spool.db", loop=asyncio.get_running_loop(), limits=SpoolLimits(**limits), clock=clock)
    await spool.open()
    return spool


def record(n: int, size: int = 0) -> Outbound:
    return Outbound(f"t/{n}", str(n).encode() + b"x" * size)


async def committed(spool: Spool, *appends: tuple[str, str, Outbound]) -> None:
    """Appends all of them and waits for the last one's commit."""
    last = asyncio.get_running_loop().create_future()
    for i, each in enumerate(appends, 1):
        spool.append(*each, (lambda: last.set_result(None)) if i == len(appends) else None)
    await last


async def topics(spool: Spool, link: str = "cloud", kind: str | None = None, limit: int = 1000) -> list[str]:
    """What was not given out yet, kind by kind."""
    found: list[Record] = []
    for each in (kind,) if kind else KINDS:
        while batch := await spool.next_batch(link, each, limit):
            found += batch
    return [record.out.topic for record in found]


TEXT = st.text(max_size=8)
PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | TEXT,
    response_topic=st.none() | TEXT,
    correlation=st.none() | st.binary(max_size=8),
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    user=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
)


@given(st.builds(Outbound, TEXT, st.binary(max_size=50), st.integers(0, 1), st.booleans(), PROPERTIES), st.data())
def test_a_message_comes_back_as_it_was_and_a_flipped_bit_is_noticed(out: Outbound, data: st.DataObject) -> None:
    body = pack_outbound(out)
    back = unpack_outbound(body)
    assert (back.topic, back.payload, back.qos, back.retain, back.properties) == (
        out.topic,
        out.payload,
        out.qos,
        out.retain,
        out.properties,
    )
    at = data.draw(st.integers(0, 8 * len(body) - 1))
    broken = bytearray(body)
    broken[at // 8] ^= 1 << at % 8
    with pytest.raises(DamagedRecordError):
        unpack_outbound(bytes(broken))


@pytest.mark.parametrize(("age_s", "expected_s"), [(5.0, 95.0), (-3600.0, 100.0)])
def test_a_request_s_age_goes_on_over_a_restart(age_s: float, expected_s: float) -> None:
    body = pack_inbound(Inbound("local", "t", b"p", ticket=7, properties=Properties(expiry_s=30)), ["a", "b"], 1000.0)
    message, targets = unpack_inbound(body, now=1000.0 + age_s, monotonic=100.0)
    assert (message.link, message.topic, message.payload, targets) == ("local", "t", b"p", ["a", "b"])
    assert message.received_s == expected_s
    assert message.ticket == 0
    assert message.properties.expiry_s == 30


def test_records_come_back_in_order_after_a_restart_and_the_backlog_is_exact(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)
        for n in range(1, 8):
            spool.append("cloud", "report" if n == 3 else "capture", record(n))
        spool.append("local", "result", record(99))
        assert spool.backlog("cloud") == 7  # at once, before any commit
        assert spool.backlog("cloud", "report") == 1
        await spool.close()

        spool = await opened(tmp_path)
        assert (spool.backlog("cloud"), spool.backlog("local")) == (7, 1)
        batch = await spool.next_batch("cloud", "capture", 3)
        assert [(record.kind, record.out.topic) for record in batch] == [
            ("capture", "t/1"),
            ("capture", "t/2"),
            ("capture", "t/4"),
        ]
        batch += await spool.next_batch("cloud", "report", 3)
        assert batch[-1].out.topic == "t/3"
        assert spool.backlog("cloud") == 7
        gone = [record.seq for record in batch]
        spool.handed_over(gone)
        spool.handed_over(gone)  # twice counts once
        spool.handed_over([4711])
        assert spool.backlog("cloud") == 3
        assert await topics(spool, kind="capture", limit=10) == ["t/5", "t/6", "t/7"]
        spool.append("cloud", "capture", record(8))
        await spool.close()
        await spool.close()

        spool = await opened(tmp_path)
        assert await topics(spool) == ["t/5", "t/6", "t/7", "t/8"]
        assert spool.backlog("cloud") == 4
        await spool.close()

    run(main)


def test_a_burst_is_committed_in_groups(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)
        done: list[int] = []
        for n in range(1000):
            spool.append("cloud", "capture", record(n), lambda n=n: done.append(n))
            if n % 10 == 0:
                await asyncio.sleep(0)  # a hundred turns of the loop
        await committed(spool, ("cloud", "capture", record(1000)))
        assert done == list(range(1000))
        assert spool.commits <= 101
        assert spool.backlog("cloud") == 1001
        await spool.close()

    run(main)


WRITER = """
import asyncio, sys
from pathlib import Path
from agent.cloud.spool import KINDS, Record, Spool
from agent.cloud.spool_clock import Clock
from agent.messages import Outbound

async def main():
    spool = Spool(Path(sys.argv[1]), loop=asyncio.get_running_loop())
    await spool.open()
    count = int(sys.argv[2])
    last = asyncio.get_running_loop().create_future()
    def said(n):
        sys.stdout.write(f"{n}\\n")
        sys.stdout.flush()
        if n == count - 1:
            last.set_result(None)
    for n in range(count):
        spool.append("cloud", "report", Outbound(f"t/{n}", b"x" * 300), lambda n=n: said(n))
        if n % 7 == 0:
            await asyncio.sleep(0)
    await last
    print("commits", spool.commits)

asyncio.run(main())
"""


def writer(file: Path, count: int, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", WRITER, str(file), str(count)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("killed_after", [1, 50, 400])
def test_what_a_killed_writer_saw_committed_is_there(tmp_path: Path, killed_after: int) -> None:
    child = writer(tmp_path / "spool.db", 1_000_000)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(killed_after)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()  # what it said before the signal reached it
    child.wait()
    child.stdout.close()
    last_said = int([line for line in said if line.endswith("\n")][-1])

    async def main() -> None:
        spool = await opened(tmp_path)
        found = await topics(spool)
        assert found == [f"t/{n}" for n in range(len(found))]  # no gap, in order
        assert len(found) > last_said
        assert spool.backlog("cloud") == len(found)
        await spool.close()

    run(main)


def test_every_commit_is_synced_before_it_counts(tmp_path: Path) -> None:
    assert shutil.which("strace"), "this test needs strace (Debian: apt-get install strace)"
    trace = tmp_path / "trace"
    child = writer(
        tmp_path / "spool.db", 300, "strace", "-f", "-yy", "-e", "trace=fdatasync,fsync,write", "-o", str(trace)
    )
    out, _ = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    commits = int(out.split("commits ")[1])
    lines = trace.read_text().splitlines()
    first_said = next(i for i, line in enumerate(lines) if "write(1<" in line and '"0\\n"' in line)
    log_syncs = [i for i, line in enumerate(lines) if "spool.db-wal" in line and "sync(" in line]
    assert log_syncs[0] < first_said
    assert len(log_syncs) >= commits


def test_room_is_made_by_dropping_the_oldest_captures_first(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, max_bytes=100_000)
        await committed(spool, ("cloud", "report", record(0, 1000)), ("cloud", "result", record(1, 1000)))
        await committed(spool, *(("cloud", "capture", record(n, 1000)) for n in range(2, 200)))
        dropped = spool.dropped["capture"]
        assert dropped > 80
        assert spool.dropped == {"capture": dropped}
        found = await topics(spool)
        assert found == ["t/0", "t/1"] + [f"t/{n}" for n in range(2 + dropped, 200)]
        assert spool.backlog("cloud") == len(found) == 200 - dropped
        # What is on its way already is not taken away: it all counts once.
        await committed(spool, *(("cloud", "report", record(n, 1000)) for n in range(200, 300)))
        assert spool.dropped["result"] == 0
        assert spool.backlog("cloud", "capture") == len(found) - 2
        await spool.close()

    run(main)


def test_with_nothing_but_reports_the_oldest_go(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path, max_bytes=10_000)
        await committed(spool, *(("cloud", "report", record(n, 1000)) for n in range(30)))
        found = await topics(spool)
        assert found == [f"t/{n}" for n in range(30 - len(found), 30)]
        assert spool.dropped == {"report": 30 - len(found)}
        await spool.close()

    run(main)


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for _ in range(2):  # the second takes the first one's place
            (tmp_path / "spool.db").write_bytes(os.urandom(5000))
            spool = await opened(tmp_path)
            assert spool.backlog("cloud") == 0
            await committed(spool, ("cloud", "report", record(1)))
            await spool.close()
        assert sorted(os.listdir(tmp_path)) == ["spool.db", "spool.db.corrupt", "spool.db.reserve"]
        assert "it is set aside" in caplog.text

    run(main)


def test_an_older_or_newer_layout_is_set_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("CREATE TABLE records (other)")
        db.execute("PRAGMA user_version = 99")
    db.close()

    async def main() -> None:
        spool = await opened(tmp_path)
        await committed(spool, ("cloud", "report", record(1)))
        assert await topics(spool) == ["t/1"]
        await spool.close()

    run(main)


def test_a_file_that_breaks_while_it_is_used_is_begun_anew(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)
        await committed(spool, *(("cloud", "capture", record(n, 4000)) for n in range(3000)))
        await committed(spool, ("cloud", "capture", record(3000)))
        early = await spool.next_batch("cloud", "capture", 1)
        file = tmp_path / "spool.db"
        for name in (file, Path(f"{file}-wal")):
            with name.open("r+b") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(4096)
                stream.write(b"\xa5" * (size - 4096))
        await topics(spool)
        await committed(spool, ("cloud", "report", record(5000)))
        assert await topics(spool) == ["t/5000"]
        assert spool.backlog("cloud") == 1
        spool.handed_over([early[0].seq])  # was lost with the file; it must not count against the new one
        assert spool.backlog("cloud") == 1
        assert "spool.db.corrupt" in os.listdir(tmp_path)
        await spool.close()

    run(main)


def test_a_damaged_record_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)
        for n in range(3):
            spool.append("cloud", "report", record(n, 50))
        spool.put_inbox("k", Inbound("local", "t", b"x" * 50), ["function:f"])
        await spool.close()
        file = tmp_path / "spool.db"
        db = sqlite3.connect(file)
        db.execute("UPDATE records SET body = replace(body, 't/1', 't/9') WHERE seq = 2")
        db.execute("UPDATE records SET body = CAST(body AS BLOB)")
        db.execute("UPDATE inbox SET body = x'00'")
        db.commit()
        db.close()
        spool = await opened(tmp_path)
        assert spool.backlog("cloud") == 3
        assert await spool.inbox() == []
        found = await topics(spool)
        assert "t/9" not in found
        assert spool.backlog("cloud") == len(found)
        assert spool.dropped["report"] == 3 - len(found)
        assert "damaged" in caplog.text
        await spool.close()

    run(main)


def test_the_inbox_keeps_requests_in_order_until_they_have_an_outcome(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)
        safe = asyncio.get_running_loop().create_future()
        received_s = time.monotonic() - 10
        for key in ("z", "a", "m"):
            message = Inbound("local", f"in/{key}", key.encode(), 1, ticket=5, received_s=received_s)
            spool.put_inbox(key, message, ["function:f", "cloud"])
        again = Inbound("local", "in/z", b"z", 1)
        spool.put_inbox("z", again, ["cloud"], lambda: safe.set_result(None))
        spool.drop_inbox("a")
        spool.drop_inbox("unknown")
        await safe
        assert [key for key, _, _ in await spool.inbox()] == ["z", "m"]
        await spool.close()

        spool = await opened(tmp_path)
        (z, first, targets), (m, second, _) = await spool.inbox()
        assert (z, first.payload, targets, m) == ("z", b"z", ["cloud"], "m")
        assert second.ticket == 0
        assert abs(second.received_s - received_s) < 5  # the wall clock carried it over
        await spool.close()

    run(main)


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    async def unavailable(folder: Path) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            await opened(folder)
        return caught.value

    async def main() -> None:
        (tmp_path / "file").write_text("")
        assert (await unavailable(tmp_path / "file")).code == "SPOOL_UNAVAILABLE"
        spool = await opened(tmp_path)
        error = await unavailable(tmp_path)  # another agent's
        assert "locked" in error.message
        assert error.remedy
        await spool.close()

    run(main)


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from agent.cloud.spool import Spool
from agent.messages import Outbound

async def main():
    loop = asyncio.get_running_loop()
    spool = Spool(Path(sys.argv[1]), loop=loop)
    await spool.open()
    done = []

    async def until(count):
        while len(done) < count:
            await asyncio.sleep(0.01)

    def append(n, link, kind, size=20000):
        spool.append(link, kind, Outbound(f"t/{n}", b"x" * size), lambda: done.append(n))

    append(0, "cloud", "report", 1)
    await until(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    append(1, "cloud", "report")
    append(2, "cloud", "capture")
    append(3, "cloud", "result")
    append(4, "local", "result")
    await until(2)
    assert done == [0, 2] and spool.dropped == {"capture": 1}, (done, spool.dropped)
    read = await spool.next_batch("cloud", "report", 10)
    assert [record.out.topic for record in read] == ["t/0"], read     # what is there can still go out
    await until(3)
    assert done == [0, 2, 3] and spool.dropped == {"capture": 1, "result": 1}, (done, spool.dropped)
    append(5, "cloud", "result")            # from now on at once
    append(6, "cloud", "capture")
    await until(5)
    assert done[3:] == [5, 6] and spool.summary()["disk"] != "ok", done
    assert spool.backlog("cloud") == 2 and spool.backlog("local") == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await until(7)
    assert done[5:] == [1, 4] and spool.summary()["disk"] == "ok", done
    await spool.close()

asyncio.run(asyncio.wait_for(main(), 20))
"""


def test_a_disk_that_takes_nothing_holds_up_nobody_for_the_cloud_s_sake(tmp_path: Path) -> None:
    """Captures go at once, the cloud's results a second later; reports and local results wait until it takes them."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "spool.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.count("cannot write and tries again") == 1  # said once, not at each try
    assert "writes again" in child.stderr

    async def main() -> None:
        spool = await opened(tmp_path)
        assert await topics(spool) == ["t/0", "t/1"]
        assert await topics(spool, "local") == ["t/4"]
        assert spool.dropped == {"capture": 2, "result": 2}
        await spool.close()

    run(main)


def test_a_callback_that_raises_harms_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        spool = await opened(tmp_path)

        def bad() -> None:
            raise ValueError

        spool.append("cloud", "report", record(1), bad)
        await committed(spool, ("cloud", "report", record(2)))
        assert await topics(spool) == ["t/1", "t/2"]
        await spool.close()
        with pytest.raises(RuntimeError):
            spool.append("cloud", "report", record(3))

    run(main)
