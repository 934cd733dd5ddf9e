"""Speed, memory and growth of the agent, beside what users would pick instead: `scripts/bench`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.bench import deploying, footprint, growth, jobs, machine, page, setting_up, summary
from tests.bench.contenders import CONTENDERS, running
from tests.bench.places import PAGES, ROOT
from tests.bench.running import Site
from tests.mqtt_kit import Mosquitto

# Brokers that get in nobody's way: what is compared is what stands behind them.
FREE = ("max_inflight_messages 100", "log_type error", "connection_messages false")


def tell(text: str) -> None:
    print(f"- {text}", file=sys.stderr, flush=True)


PARTS = ("jobs", "footprint", "floor", "under_load", "subscriptions", "functions", "records", "payloads")


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's subset, which only shows that the bench runs")
    parser.add_argument("--parts", default=None, help=f"of {', '.join(PARTS)}; separated by commas")
    parser.add_argument("--jobs", default=None, help=f"of {', '.join(jobs.JOBS)}; separated by commas")
    parser.add_argument("--only", default=None, help=f"contenders, of {', '.join(CONTENDERS)}; separated by commas")
    parser.add_argument("--rounds", type=int, default=None, help="how often all take their turn (20; quick: 2)")
    parser.add_argument("--seconds", type=float, default=None, help="of one run, in place of each job's own")
    parser.add_argument("--out", type=Path, default=None, help="where the page goes (docs/benchmarks; quick: none)")
    found = parser.parse_args(argv)
    found.rounds = found.rounds or (2 if found.quick else 20)
    found.seconds = found.seconds or (1.0 if found.quick else None)
    found.out = found.out or (None if found.quick else PAGES)
    whole = jobs.JOBS if not found.quick else jobs.QUICK
    found.parts = _chosen(parser, "part", found.parts, PARTS, ("jobs",) if found.quick or found.jobs else PARTS)
    found.jobs = _chosen(parser, "job", found.jobs, jobs.JOBS, whole)
    among = jobs.QUICK_CONTENDERS if found.quick else CONTENDERS
    found.only = _chosen(parser, "contender", found.only, CONTENDERS, among)
    return found


def _chosen(
    parser: argparse.ArgumentParser, what: str, given: str | None, known: Iterable[str], otherwise: Iterable[str]
) -> list[str]:
    """The names in `given`, in the order of `known`."""
    names = given.split(",") if given else list(otherwise)
    for name in names:
        if name not in known:
            parser.error(f"no {what} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def main(argv: list[str] | None = None) -> int:
    chosen = options(argv)
    set_up(chosen)
    began_s = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="marram-bench-", dir=os.environ.get("TMPDIR")))
    found: dict[str, Any] = {"command": "scripts/bench", "machine": machine.described(), "rounds": chosen.rounds}
    failed = found["failed"] = []
    try:
        for part in chosen.parts:
            try:
                found["samples" if part == "jobs" else part] = measured(part, directory / part, chosen)
            except Exception as error:  # the other parts are worth having
                traceback.print_exc()
                failed.append(f"{part} ({type(error).__name__}: {str(error)[:200]})")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - began_s)
    print_table(found.get("samples", []), chosen.jobs)
    print("\n" + "\n".join(page.target_table(found)))
    if chosen.out:
        page.write(found, chosen.out)
        if chosen.out == PAGES and set(chosen.parts) == set(PARTS):
            page.write_readme(found, ROOT / "README.md")
        tell(f"written to {chosen.out}, after {found['seconds']} s")
    return 1 if failed else 0


def set_up(chosen: argparse.Namespace) -> None:
    """Installs what the chosen parts compare."""
    setting_up.compile_c("load", tell)
    setting_up.compile_sources(tell)
    if chosen.quick:
        return
    alone = footprint.CONTENDERS if "footprint" in chosen.parts else ()
    wanted = {each for job in chosen.jobs for each in jobs.JOBS[job].contenders if "jobs" in chosen.parts} | {*alone}
    names = [each for each in chosen.only if each in wanted]
    if "c-echo" in names:
        setting_up.compile_c("echo", tell, "-lmosquitto")
    if any(each.startswith("loop") for each in names):
        setting_up.install_loop(tell)
    if any(each.startswith("mlserver") for each in names):
        setting_up.install_mlserver(tell)
    if "node-red" in names:
        setting_up.install_node_red(tell)


def measured(part: str, directory: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """What a part finds, on a broker of its own where it needs one."""
    directory.mkdir()
    few = max(chosen.rounds // 5, 1)
    tell(part)
    if part == "jobs":
        return measure_jobs(directory, chosen)
    if part == "floor":
        return list(deploying.beside_its_floor(directory / "floor", few))
    if part == "records":
        return growth.records(directory / "records", tell)
    with broker_in(directory / "broker", stock=False) as broker:
        site = Site(broker.port, directory / "site")
        site.directory.mkdir()
        names = [each for each in footprint.CONTENDERS if each in chosen.only]
        runs: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "footprint": lambda: footprint.run(site, names, few, tell),
            "under_load": lambda: deploying.under_load(site, chosen.rounds, tell),
            "subscriptions": lambda: growth.subscriptions(site, chosen.rounds, tell),
            "functions": lambda: growth.functions(site, tell),
            "payloads": lambda: growth.payloads(site, few, tell),
        }
        return list(runs[part]())


def measure_jobs(directory: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The samples of all jobs: those with the stock broker on one, all others on another."""
    samples: list[dict[str, Any]] = []
    for stock in (False, True):
        names = [each for each in chosen.jobs if jobs.JOBS[each].stock == stock]
        wanted = {each for name in names for each in jobs.JOBS[name].contenders}
        contenders = [each for each in chosen.only if each in wanted]
        if not contenders:
            continue
        with broker_in(directory / f"broker-{stock}", stock=stock) as broker:
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
