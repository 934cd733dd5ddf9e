"""The demonstration's views, drawn to a console in memory."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from agent.demo import view
from agent.demo.view import Check, Figures, Lines, Screen, shown, summary

FIGURES = Figures(
    sent=480,
    answered=478,
    waiting=2,
    answers={"v1": 300, "v2": 178},
    activities={"watch-1": "Running", "watch-2": "Standing"},
    results=470,
    samples=90,
)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_without_a_terminal_events_and_figures_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "LINE_EVERY_S", 0.0)
    out = console(terminal=False)
    with shown(out, lambda: FIGURES) as lines:
        assert isinstance(lines, Lines)
        lines.phase("A step")
        lines.tick()
        lines.check(Check("a [promise]", False, "it broke"))
    written = text(out).splitlines()
    assert [line.split(" s ", 1)[1] for line in written] == [
        "== A step",
        "   sent=480 answered=478 waiting=2 lost=0 wrong=0 v1=300 v2=178 p50=0.0ms p99=0.0ms "
        "cloud: results=470 samples=90",
        "   FAILED a [promise]: it broke",
    ]


def test_with_a_terminal_the_screen_shows_steps_watches_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "SAMPLE_S", 1e-9)
    figures = [FIGURES, replace(FIGURES, answers={"v1": 300, "v2": 298}, cloud_cut=True)]
    out = console(terminal=True)
    screen = Screen(out, lambda: figures[0] if len(figures) == 1 else figures.pop(0))
    screen.phase("A step")
    screen.check(Check("a promise", True, "it held"))
    out.print(screen)
    out.print(screen)
    for expected in ("A step", "✔", "a promise: it held", "watch-1: Running", "CUT OFF", "v2", "█"):
        assert expected in text(out)


def test_the_summary_says_what_did_not_hold() -> None:
    out = console(terminal=False)
    summary(out, [Check("one", True, "seen"), Check("two", False, "nothing")])
    assert "yes" in text(out)
    assert "NO" in text(out)
