"""Speed, memory and growth of the agent, beside what users would pick instead: `scripts/bench`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import jobs, machine, setting_up, summary
from tests.bench.contenders import CONTENDERS, Site, running
from tests.bench.places import PAGES
from tests.mqtt_kit import Mosquitto

# Brokers that get in nobody's way: what is compared is what stands behind them.
FREE = ("max_inflight_messages 100", "log_type error", "connection_messages false")


def tell(text: str) -> None:
    print(f"- {text}", file=sys.stderr, flush=True)


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's subset, which only shows that the bench runs")
    parser.add_argument("--jobs", default=None, help=f"of {', '.join(jobs.JOBS)}; separated by commas")
    parser.add_argument("--only", default=None, help=f"contenders, of {', '.join(CONTENDERS)}; separated by commas")
    parser.add_argument("--rounds", type=int, default=None, help="how often all take their turn (20; quick: 2)")
    parser.add_argument("--seconds", type=float, default=None, help="of one run, in place of each job's own")
    parser.add_argument(
        "--out", type=Path, default=None, help=f"where results and pages go ({PAGES.name}; quick: none)"
    )
    found = parser.parse_args(argv)
    found.rounds = found.rounds or (2 if found.quick else 20)
    found.jobs = found.jobs.split(",") if found.jobs else list(jobs.QUICK if found.quick else jobs.JOBS)
    chosen = found.only.split(",") if found.only else list(jobs.QUICK_CONTENDERS if found.quick else CONTENDERS)
    for name, known in ((j, jobs.JOBS) for j in found.jobs):
        if name not in known:
            parser.error(f"no job {name!r}; there are {', '.join(known)}")
    for name in chosen:
        if name not in CONTENDERS:
            parser.error(f"no contender {name!r}; there are {', '.join(CONTENDERS)}")
    wanted = {each for job in found.jobs for each in jobs.JOBS[job].contenders}
    found.only = [each for each in CONTENDERS if each in chosen and each in wanted]
    if found.out is None and not found.quick:
        found.out = PAGES
    if found.seconds is None and found.quick:
        found.seconds = 0.2
    return found


def main(argv: list[str] | None = None) -> int:
    chosen = options(argv)
    set_up(chosen.only, quick=chosen.quick)
    began_s = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="marram-bench-"))
    found: dict[str, Any] = {"command": "scripts/bench", "machine": machine.described(), "rounds": chosen.rounds}
    try:
        found["samples"] = measure_jobs(directory, chosen)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - began_s)
    print_table(found["samples"], chosen.jobs)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        tell(f"written to {chosen.out}")
    return 0


def set_up(contenders: list[str], *, quick: bool) -> None:
    setting_up.compile_c("load", tell)
    if "c-echo" in contenders:
        setting_up.compile_c("echo", tell, "-lmosquitto")
    if any(each.startswith("loop") for each in contenders) and not quick:
        setting_up.install_loop(tell)


def measure_jobs(directory: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = []
    for stock in (False, True):
        names = [each for each in chosen.jobs if jobs.JOBS[each].stock == stock]
        wanted = {each for name in names for each in jobs.JOBS[name].contenders}
        contenders = [each for each in chosen.only if each in wanted]
        if not contenders:
            continue
        broker = broker_in(directory / f"broker-{stock}", stock=stock)
        with broker:
            assert broker.process
            site = Site(broker.port, directory / f"site-{stock}")
            site.directory.mkdir()
            tell(f"start {', '.join(contenders)}")
            with running(site, contenders) as at_work:
                samples += jobs.run(names, at_work, broker.process.pid, chosen.rounds, chosen.seconds, tell)
    return samples


def broker_in(directory: Path, *, stock: bool) -> Mosquitto:
    broker = Mosquitto(directory, options=FREE)
    if stock:
        lines = broker.config.read_text().splitlines()
        kept = [line for line in lines if line.startswith(("listener", "allow_anonymous", "user"))]
        broker.config.write_text("\n".join(kept) + "\n")
    return broker


def print_table(samples: list[dict[str, Any]], names: list[str]) -> None:
    for name in names:
        job = jobs.JOBS[name]
        print(f"\n{job.title}")
        for contender in job.contenders:
            rate, p50 = (
                summary.figure(summary.values(samples, name, contender, of).values()) for of in ("rate", "p50")
            )
            cpu = summary.figure(summary.values(samples, name, contender, "cpu").values())
            ratio = summary.ratio(samples, name, contender, job.base, "p50" if job.latency else "rate")
            if rate and p50:
                print(
                    f"  {CONTENDERS[contender].title:28} {rate.median:9.0f}/s  p50 {p50.median:9.1f} us"
                    f"  cpu {cpu.median if cpu else 0:7.1f} us"
                    + (f"  {ratio.median:6.2f} x ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "")
                )


if __name__ == "__main__":
    sys.exit(main())
