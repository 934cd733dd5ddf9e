"""A core whose disk is full while its cloud is away: devices are answered, captures go before results, and it recovers.

The state directory is a real, small file system (tmpfs), which root may mount; elsewhere it says so.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_kit import Core, function, subscription
from tests.conftest import Site
from tests.load_kit import Load
from tests.mqtt_kit import PlainClient, wait_until
from tests.test_promises import figure

DISK_BYTES = 24 << 20
BIG = "x" * 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The core's state directory, on a tmpfs of 24 MiB."""
    if os.getuid() != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    place = tmp_path / "core" / "state"
    place.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}"]
    done = subprocess.run(["mount", *options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Takes all the room that is left."""
    file = place / "somebody-else-s.log"
    with file.open("ab", buffering=0) as stream:
        for size in (1 << 20, 4096):
            try:
                while stream.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return file


def lost(core: Core) -> dict[str, int]:
    found: dict[str, int] = core.status()["spool"]["dropped"]
    return found


def heard(cloud: PlainClient) -> set[int]:
    return {json.loads(each)["echo"]["n"] for each in cloud.payloads()}


def test_devices_are_answered_while_the_disk_is_full(site: Site, small_disk: Path, record_property: Any) -> None:
    core = site.core()
    with core, site.device() as device:
        core.wait_linked()
        core.deploy(
            {
                "DeploymentId": "full",
                "Functions": [function("echo", marram={"Capture": {"Strategy": "random", "Rate": 1.0}})],
                "Subscriptions": [
                    subscription("local", "work/a", "function:echo"),
                    subscription("function:echo", "#", "cloud"),
                ],
            }
        )
        core.wait_ready("echo")
        site.cloud.stop()
        wait_until(lambda: not core.status()["links"]["cloud"]["connected"], "the cloud away")
        load = Load(device, "work/a", lambda n: {"n": n, "pad": BIG}, window=20)
        load.run(500)
        assert not lost(core)
        filler = fill(small_disk)
        load.run(700)  # answered, every one
        full = core.status()["spool"]
        assert full["dropped"].get("capture"), "captures go first"
        on_disk = full["backlog"]["cloud"].get("capture", {}).get("bytes", 0)  # not those just given to the spool
        assert not full["dropped"].get("result") or not on_disk
        filler.unlink()
        wait_until(lambda: core.status()["spool"]["disk"] == "ok", "the disk to take something again")
        answered = load.count
        load.run(200)
        before = lost(core)
        with PlainClient(site.cloud.start().port, "the-cloud") as cloud:
            cloud.subscribe("work/a/echo")
            wait_until(lambda: core.status()["links"]["cloud"]["connected"], "the cloud back", 90)
            load.run(20)
            wait_until(lambda: core.status()["links"]["cloud"]["backlog"] == 0, "an empty spool", 60)
            wait_until(lambda: load.count - 1 in heard(cloud), "the last result at the cloud")
        assert lost(core) == before, "nothing more is lost once there is room"
        assert len(load.answers) == load.count
        figure(
            record_property,
            answered_on_a_full_disk=answered - 500,
            captures_dropped=full["dropped"].get("capture", 0),
            results_dropped=full["dropped"].get("result", 0),
        )
