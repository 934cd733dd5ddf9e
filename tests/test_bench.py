"""The bench still runs, and its figures are what they say. No figure is judged: that takes a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import summary
from tests.bench.places import ROOT


def test_the_quick_bench_measures_the_loop_and_the_agent(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.bench", "--quick", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    found = json.loads((tmp_path / "results.json").read_text())
    runs = {(sample["job"], sample["contender"]): sample for sample in found["samples"]}
    assert set(runs) == {(job, who) for job in ("one-pinned", "many", "many-qos0") for who in ("loop", "agent")}
    for sample in runs.values():
        assert sample["answers"] > 0
        assert sample["unanswered"] == 0
        assert 0 < sample["latency_us"]["p50"] <= sample["latency_us"]["p99"]
    assert set(runs["many", "agent"]["cpu_us"]) == {"agent", "worker", "broker"}
    assert "agent, code" in done.stdout


def test_what_is_not_there_is_said_in_one_line() -> None:
    argv = [sys.executable, "-m", "tests.bench", "--jobs", "many,none"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no job 'none'" in done.stderr


@pytest.mark.parametrize(("count", "outside"), [(1, 0), (5, 0), (6, 0), (20, 5), (100, 39)])
def test_a_median_has_an_interval_of_order_statistics(count: int, outside: int) -> None:
    # David and Nagaraja, Order Statistics, 7.1: intervals for quantiles.
    found = summary.figure(range(count))
    assert found
    assert found.median == (count - 1) / 2
    assert found.count == count
    assert (found.low, found.high) == (outside, count - 1 - outside)


def test_ratios_are_taken_within_a_round() -> None:
    samples = [
        {
            "job": "j",
            "round": n,
            "contender": name,
            "rate": rate,
            "latency_us": {},
            "cpu_us": {"broker": 1.0, name: 2.0},
        }
        for n, (ours, theirs) in enumerate([(20.0, 10.0), (300.0, 100.0), (8.0, 2.0)])
        for name, rate in (("a", ours), ("b", theirs))
    ]
    found = summary.ratio(samples, "j", "a", "b", "rate")
    assert found
    assert (found.median, found.low, found.high, found.count) == (3.0, 2.0, 4.0, 3)
    assert summary.values(samples, "j", "a", "cpu") == {0: 2.0, 1: 2.0, 2: 2.0}
    assert summary.ratio(samples, "j", "a", "nobody", "rate") is None
