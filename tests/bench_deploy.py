"""A deployment of 100 MB against curl, sha256sum, tar and fsync: `scripts/bench-deploy`.

Rounds are interleaved, so that whatever else the machine does falls on both. A deployment is timed from the document's
bytes to the phase ``staged``: journal, installer's start, fetch, digest, unpack and sync are in it. The model is 105 MB
of weights that shrink by 8 %, a shared object and a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import numpy as np

from agent.deployment.deployer import Deployer
from agent.deployment.installer import NICENESS
from agent.deployment.store import Store
from agent.settings import Link, Policy, Settings, Topics
from tests.no_workers import NoWorkers
from tests.static_store import StaticStore

WEIGHTS = 26_000_000
DEADLINE_S = 120.0


def make_archive(path: Path, weights: int = WEIGHTS) -> None:
    """A model's directory as a .tar.gz."""
    folder = path.parent / "model"
    folder.mkdir()
    values = np.random.default_rng(1).standard_normal(weights).astype("float32") * 0.05
    values.tofile(folder / "model.params")
    (folder / "model.so").write_bytes(random.Random(1).randbytes(1_000_000))
    (folder / "model.json").write_text("{}")
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    shutil.rmtree(folder)


def settings_of(directory: Path) -> Settings:
    nowhere = Link("local", "mqtt://127.0.0.1:1")
    topics = Topics("d", "s", "t", "c", "e")
    policy = Policy(sources=("*",))
    return Settings(directory / "topics.yaml", "bench", directory / "state", (), nowhere, None, topics, (), policy)


class _Serving(NoWorkers):
    """As if there were workers that serve: the installer keeps out of their way."""

    def in_use(self) -> set[int]:
        return {1}


async def deploy_once(directory: Path, source: dict[str, Any], digest: str | None, *, serving: bool = False) -> float:
    """Seconds from the message to the staged object, on an empty state directory."""
    staged = asyncio.Event()
    failed: list[Any] = []

    def report(status: dict[str, Any]) -> None:
        if status["phase"] == "staged":
            staged.set()
        if status["reason"]:
            failed.append(status["reason"])
            staged.set()

    settings = settings_of(directory)
    deployer = Deployer(Store(settings.state), settings, _Serving() if serving else NoWorkers(), report)
    await deployer.recover()
    deployer.start()
    extra = {"Marram": {"Digest": digest}} if digest else {}
    resource = {"Id": "m", "Name": "m", "ResourceDataContainer": source, **extra}
    body = json.dumps({"DeploymentId": "b", "Resources": [resource]}).encode()
    begun_s = time.perf_counter()
    deployer.receive(body, retained=False, accepted=lambda: None)
    await asyncio.wait_for(staged.wait(), DEADLINE_S)
    took_s = time.perf_counter() - begun_s
    if failed:
        raise RuntimeError(str(failed[0]))
    await deployer.close()
    return took_s


def by_hand(directory: Path, url: str) -> float:
    """Seconds that curl, sha256sum, tar and fsync take, one after the other; as nice to others as the installer is."""
    script = (
        'curl -sSf -o a.tar.gz "$1" && sha256sum a.tar.gz >/dev/null && mkdir t && tar xzf a.tar.gz -C t && sync t/* t'
    )
    begun_s = time.perf_counter()
    subprocess.run(["nice", "-n", str(NICENESS), "bash", "-c", script, "bash", url], cwd=directory, check=True)
    return time.perf_counter() - begun_s


def cpu_s() -> float:
    """Seconds of processor that this process and its children have used; the store's are not among them."""
    return sum(used.ru_utime + used.ru_stime for used in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


@dataclass(frozen=True)
class Round:
    """Seconds, of the clock and of a processor, by hand and deployed."""

    hand_s: float
    hand_cpu_s: float
    deployed_s: float
    deployed_cpu_s: float

    @property
    def clock(self) -> float:
        """The deployment's part of the time by hand."""
        return self.deployed_s / self.hand_s

    @property
    def processor(self) -> float:
        """The deployment's part of the processor's time by hand."""
        return self.deployed_cpu_s / self.hand_cpu_s


def rounds(work: Path, count: int, weights: int = WEIGHTS, *, serving: bool = False) -> list[Round]:
    """So many rounds on one archive and store, after one that is not counted: what is read first is read slowly.

    Args:
        serving: whether the agent is to take it that workers serve meanwhile.
    """
    served = work / "store" / "models"
    served.mkdir(parents=True)
    make_archive(served / "m.tar.gz", weights)
    digest = f"sha256:{hashlib.sha256((served / 'm.tar.gz').read_bytes()).hexdigest()}"
    found = []
    with StaticStore(work / "store") as store:
        os.environ |= {"AWS_ENDPOINT_URL_S3": store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                       "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
        source = {"S3MachineLearningModelResourceData": {"S3Uri": "s3://models/m.tar.gz"}}
        for _ in range(count + 1):
            directory = work / "round"
            directory.mkdir()
            os.sync()
            begun_s = cpu_s()
            hand_s = by_hand(directory, f"{store.url}/models/m.tar.gz")
            hand_cpu_s = cpu_s() - begun_s
            os.sync()
            begun_s = cpu_s()
            deployed_s = asyncio.run(deploy_once(directory, source, digest, serving=serving))
            found.append(Round(hand_s, hand_cpu_s, deployed_s, cpu_s() - begun_s))
            shutil.rmtree(directory)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench-deploy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serving", action="store_true", help="as beside workers that serve: on half the processors")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="marram-bench-", dir=os.environ.get("TMPDIR")))
    try:
        found = rounds(work, options.rounds, serving=options.serving)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("curl, sha256sum, tar, fsync |      deployment      |      ratio")
    print("      clock      processor  |   clock   processor  |  clock  processor")
    for each in found:
        hand, ours = (
            f"{each.hand_s:9.2f} s {each.hand_cpu_s:9.2f} s",
            f"{each.deployed_s:6.2f} s {each.deployed_cpu_s:8.2f} s",
        )
        print(f"{hand}     | {ours}  | {each.clock:6.2f} {each.processor:8.2f}")
    clock, processor = (
        statistics.median(values) for values in zip(*((r.clock, r.processor) for r in found), strict=True)
    )
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"median ratios: clock {clock:.2f}, processor {processor:.2f}; {load}")


if __name__ == "__main__":
    main()
