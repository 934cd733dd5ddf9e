"""Writes docs/benchmarks: results.json, index.md and its plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import jobs, plots
from tests.bench.contenders import CONTENDERS
from tests.bench.summary import Figure, figure, ratio, values
from tests.bench.targets import Target, targets

GROWTH = {
    "subscriptions": ("Subscriptions", ("p50_us", "rate")),
    "functions": ("Functions, a process each", ("first_s", "p50_us", "pss_mb", "agent_uss_mb")),
    "records": ("Spooled records", ("open_s", "append_rate", "read_rate")),
    "payloads": ("Payload, bytes", ("p50_us", "rate")),
}
BEGIN, END = "<!-- scripts/bench -->", "<!-- end of scripts/bench -->"
NAMES = {
    "p50_us": "p50, us", "rate": "answers a second", "first_s": "start to first answer, s", "pss_mb": "PSS, MB",
    "agent_uss_mb": "agent's USS, MB", "open_s": "open, s", "append_rate": "committed a second",
    "read_rate": "read back a second",
}  # fmt: skip


def write(found: dict[str, Any], directory: Path) -> None:
    """All of it; plots are written over."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (directory / "index.md").write_text("\n".join(_page(found, directory)) + "\n")


def write_readme(found: dict[str, Any], readme: Path) -> None:
    """Puts the table of targets between the README's two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if end:
        readme.write_text("\n".join((before + BEGIN, *target_table(found), end + after)))


def target_table(found: dict[str, Any]) -> list[str]:
    """The targets as a table in Markdown; the README has its lines from here."""
    rows = [
        [each.title, _bound(each), _figure(each.measured, each.unit), {True: "met", False: "missed"}.get(each.met, "-")]
        for each in targets(found)
    ]
    return _table(("figure", "target", "measured (95 % interval)", ""), rows)


def _page(found: dict[str, Any], directory: Path) -> list[str]:
    machine = found["machine"]
    said = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{found['command']}` in {found['seconds']} s: {said}.",
        "",
        f"Ratios are taken within a round, in which all take turns, and are medians of {found['rounds']} rounds with",
        "the interval that holds the true median with 95 %; those of starts, memory, deployments and growth are of",
        "fewer. Absolute figures do not carry to other machines.",
        "[performance.md](../performance.md) says where the time goes; [results.json](results.json) has every sample.",
        "",
        "## Targets",
        "",
        *target_table(found),
        "",
    ]
    if found.get("failed"):
        lines += ["Not measured, because it failed: " + "; ".join(found["failed"]) + ".", ""]
    for name, job in jobs.JOBS.items():
        if any(sample["job"] == name for sample in found.get("samples", [])):
            lines += _job(name, job, found["samples"], directory)
    lines += _alone(found.get("footprint", []), directory)
    lines += _deployments(found)
    for name in GROWTH:
        if found.get(name):
            lines += _growth(name, found[name], directory)
    return lines


def _job(name: str, job: jobs.Job, samples: Sequence[dict[str, Any]], directory: Path) -> list[str]:
    of = "p50" if job.latency else "rate"
    unit = "us, less is better" if job.latency else "answers a second"
    rows, bars = [], []
    for contender in job.contenders:
        got = {each: figure(values(samples, name, contender, each).values())
               for each in ("rate", "p50", "p99", "p999", "cpu", "cpu:broker")}  # fmt: skip
        main = got[of]
        if main is None:
            continue
        title = CONTENDERS[contender].title
        to_base = ratio(samples, name, contender, job.base, of)
        rows.append([title, *(_plain(got[each]) for each in got), _figure(to_base, "x")])
        bars.append((title, main, title.startswith("agent")))
    (directory / f"{name}.svg").write_text(plots.bars(job.title, bars, unit))
    head = ("", "answers/s", "p50 us", "p99 us", "p99.9 us", "CPU us", "broker's CPU us", f"{of} to the loop's")
    return [f"## {job.title}", "", f"![{job.title}]({name}.svg)", "", *_table(head, rows), ""]


def _alone(samples: Sequence[dict[str, Any]], directory: Path) -> list[str]:
    if not samples:
        return []
    rows, bars = [], []
    for name in dict.fromkeys(each["contender"] for each in samples):
        mine = [each for each in samples if each["contender"] == name]
        first = figure(each["first_s"] for each in mine)
        looked = [each for each in mine if "idle_mb" in each]
        assert first
        row = [CONTENDERS[name].title, f"{first.median:.2f}"]
        if looked:
            row += [_mean(looked, lambda s, k=kind, m=when: s[m]["all"][k]) for when in ("idle_mb", "loaded_mb")
                    for kind in ("pss", "uss")]  # fmt: skip
            row += [_mean(looked, lambda s: 100 * s["idle_cpu"], 3), _mean(looked, lambda s: s["idle_wakeups_s"])]
            of = figure(s["idle_mb"]["all"]["pss"] for s in looked)
            assert of
            bars.append((CONTENDERS[name].title, of, CONTENDERS[name].title.startswith("agent")))
        rows.append(row)
    (directory / "memory.svg").write_text(plots.bars("Idle memory, PSS of all processes", bars, "MB, less is better"))
    head = ("", "first answer, s", "idle PSS, MB", "idle USS", "loaded PSS", "loaded USS", "idle CPU, %", "wake-ups/s")
    return ["## Standing alone", "", "![memory](memory.svg)", "", *_table(head, rows), ""]


def _deployments(found: dict[str, Any]) -> list[str]:
    lines = []
    if found.get("floor"):
        pairs = [(each["by_hand_s"], each["deployed_s"]) for each in found["floor"]]
        rows = [[f"{by_hand:.2f}", f"{deployed:.2f}", f"{deployed / by_hand:.2f}"] for by_hand, deployed in pairs]
        lines += ["## A deployment of 100 MB", "", *_table(("by hand, s", "deployed, s", "ratio"), rows), ""]
    if found.get("under_load"):
        keys = ("without_p50_us", "during_p50_us", "without_p99_us", "during_p99_us")
        rows = [[f"{each['deployed_s']:.2f}", *(f"{each[key]:.0f}" for key in keys)] for each in found["under_load"]]
        head = ("deployed, s", "p50 without, us", "p50 during", "p99 without", "p99 during")
        lines += ["## 200 requests a second during a deployment of 100 MB", "", *_table(head, rows), ""]
    return lines


def _growth(name: str, samples: Sequence[dict[str, Any]], directory: Path) -> list[str]:
    title, figures = GROWTH[name]
    sizes = sorted({each["size"] for each in samples})
    series: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for size in sizes:
        row = [f"{size:,}"]
        for of in figures:
            got = [each[of] for each in samples if each["size"] == size and each.get(of)]
            row.append(f"{statistics.median(got):.4g}" if got else "-")
            if got:
                series.setdefault(NAMES[of], []).append((size, statistics.median(got)))
        rows.append(row)
    (directory / f"{name}.svg").write_text(plots.lines(title, series, title.lower()))
    table = _table((title, *(NAMES[of] for of in figures)), rows)
    return [f"## Growth: {title.lower()}", "", f"![{title}]({name}.svg)", "", *table, ""]


def _bound(target: Target) -> str:
    side, bound = ("at most", target.most) if target.most is not None else ("at least", target.least)
    return f"{side} {bound:g} {target.unit}"


def _figure(value: Figure | None, unit: str) -> str:
    return "-" if value is None else f"{value.median:.2f} {unit} ({value.low:.2f} to {value.high:.2f})"


def _plain(value: Figure | None) -> str:
    return "-" if value is None else f"{value.median:,.0f}" if value.median >= 100 else f"{value.median:.1f}"


def _mean(samples: Iterable[dict[str, Any]], of: Callable[[dict[str, Any]], float], digits: int = 1) -> str:
    return f"{statistics.mean(map(of, samples)):.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
