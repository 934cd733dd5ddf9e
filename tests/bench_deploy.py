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
from pathlib import Path
from typing import Any

import numpy as np

from agent.deployment.deployer import Deployer
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


async def deploy_once(directory: Path, source: dict[str, Any], digest: str | None) -> float:
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
    deployer = Deployer(Store(settings.state), settings, NoWorkers(), report)
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
    """Seconds that curl, sha256sum, tar and fsync take, one after the other."""
    script = (
        'curl -sSf -o a.tar.gz "$1" && sha256sum a.tar.gz >/dev/null && mkdir t && tar xzf a.tar.gz -C t && sync t/* t'
    )
    begun_s = time.perf_counter()
    subprocess.run(["bash", "-c", script, "bash", url], cwd=directory, check=True)
    return time.perf_counter() - begun_s


def rounds(work: Path, count: int, weights: int = WEIGHTS) -> list[tuple[float, float]]:
    """(by hand, deployed) in seconds, for each round."""
    served = work / "store" / "models"
    served.mkdir(parents=True)
    make_archive(served / "m.tar.gz", weights)
    digest = f"sha256:{hashlib.sha256((served / 'm.tar.gz').read_bytes()).hexdigest()}"
    found = []
    with StaticStore(work / "store") as store:
        os.environ |= {"AWS_ENDPOINT_URL_S3": store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                       "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
        source = {"S3MachineLearningModelResourceData": {"S3Uri": "s3://models/m.tar.gz"}}
        for _ in range(count):
            directory = work / "round"
            directory.mkdir()
            os.sync()
            hand_s = by_hand(directory, f"{store.url}/models/m.tar.gz")
            os.sync()
            deployed_s = asyncio.run(deploy_once(directory, source, digest))
            shutil.rmtree(directory)
            found.append((hand_s, deployed_s))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench-deploy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="marram-bench-", dir=os.environ.get("TMPDIR")))
    try:
        found = rounds(work, options.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("curl, sha256sum, tar, fsync |  deployment | ratio")
    for hand_s, deployed_s in found:
        print(f"{hand_s:25.2f} s | {deployed_s:9.2f} s | {deployed_s / hand_s:.2f}")
    ratio = statistics.median(deployed_s / hand_s for hand_s, deployed_s in found)
    print(f"median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
