"""Deployments of 100 MB: beside curl, sha256sum, tar and fsync, and what requests notice of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests import bench_deploy
from tests.bench import cores
from tests.bench.load import command, read
from tests.bench.running import Site
from tests.static_store import StaticStore

RATE: Final = 200.0  # requests a second while a deployment goes on


def beside_its_floor(directory: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds of the clock, by hand and deployed; see `tests.bench_deploy`."""
    directory.mkdir()
    return [
        {"by_hand_s": each.hand_s, "deployed_s": each.deployed_s} for each in bench_deploy.rounds(directory, rounds)
    ]


def under_load(site: Site, rounds: int, tell: Callable[[str], None]) -> Iterator[dict[str, float]]:
    """p50 and p99 (us) of 200 requests a second at QoS 1: while a model of 100 MB is deployed, and without, in turn.

    Both windows are as long as the deployment before took. The store, which stands for one on another machine, keeps
    out of the requests' way as far as it can.
    """
    name = "deploying"
    cores.write_core(site.directory / name, name, site.port)
    with _stored(site.directory / "large", rounds + 1) as store:
        process = cores.run_agent(site, name, _environment(store))
        try:
            cores.wait_control(site.directory / name)
            took_s = _deploy(site, name, 0)
            for number in range(1, rounds + 1):
                tell(f"requests during a deployment, round {number} of {rounds}")
                without = _requests(site, name, took_s, lambda: None)
                taken: list[float] = []
                during = _requests(
                    site, name, took_s, lambda n=number, taken=taken: taken.append(_deploy(site, name, n))
                )
                took_s = taken[0]
                yield {"round": number, "deployed_s": took_s, **_named("without", without), **_named("during", during)}
        finally:
            process.terminate()
            process.wait(60)


def _named(prefix: str, latency_us: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{each}_us": latency_us[each] for each in ("p50", "p99")}


def _requests(site: Site, name: str, seconds: float, meanwhile: Callable[[], None]) -> dict[str, float]:
    """Latencies, us, of requests at a fixed rate for `seconds`, which begin together with `meanwhile`."""
    argv = command(site.way(name), qos=1, rate=RATE, seconds=seconds, warm_s=0.1)
    load = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    meanwhile()
    said, _ = load.communicate()
    if load.returncode:
        raise RuntimeError("the load during a deployment ended")
    return read(said).latency_us


def _deploy(site: Site, name: str, number: int) -> float:
    began_s = time.monotonic()
    topic = f"bench/{name}/in"
    routes = [cores.subscription("local", topic, "score"), cores.subscription("score", f"{topic}/score", "local")]
    large = {"S3MachineLearningModelResourceData": {"S3Uri": f"s3://models/m-{number}.tar.gz"}}
    resources = [cores.resource(site, "score"), {"Id": "large", "Name": "large", "ResourceDataContainer": large}]
    made = cores.document(f"d{number}", resources, [cores.configured("score", "score", has_model=True)], routes)
    cores.deploy_to(site.directory / name, made)
    return time.monotonic() - began_s


@contextlib.contextmanager
def _stored(directory: Path, count: int) -> Iterator[StaticStore]:
    """A store with `count` archives that differ in nothing but the time in their gzip header."""
    served = directory / "models"
    served.mkdir(parents=True)
    bench_deploy.make_archive(directory / "m.tar.gz")
    for number in range(count):
        shutil.copy(directory / "m.tar.gz", served / f"m-{number}.tar.gz")
        with (served / f"m-{number}.tar.gz").open("r+b") as archive:
            archive.seek(4)
            archive.write(struct.pack("<I", number + 1))
    os.sync()  # what is left to be written would be in the way
    with StaticStore(directory, elsewhere=True) as store:
        yield store


def _environment(store: StaticStore) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL_S3": store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
