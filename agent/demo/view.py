"""How the demonstration is shown: live with a terminal, as plain lines without. It decides nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from itertools import pairwise
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.values import dataclass

LINE_EVERY_S = 2.0
SAMPLE_S = 0.5
SAMPLES = 60
_BARS = " ▁▂▃▄▅▆▇█"
_COLOURS = ("cyan", "magenta", "yellow")


@dataclass(frozen=True, slots=True)
class Check:
    """Something that the demonstration promised, and whether it held."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What there is to show at one moment.

    Attributes:
        answers: answers so far by model version's name, in the order of deployment.
        activities: what each watch's wearer did last.
        results, samples: what the cloud has got.
    """

    sent: int = 0
    answered: int = 0
    waiting: int = 0
    lost: int = 0
    wrong: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    activities: dict[str, str] = field(default_factory=dict)
    results: int = 0
    samples: int = 0
    cloud_cut: bool = False


class View(Protocol):
    """`tick` is called several times a second while the demonstration waits."""

    def phase(self, title: str) -> None: ...
    def note(self, text: str) -> None: ...
    def check(self, check: Check) -> None: ...
    def tick(self) -> None: ...


@contextmanager
def shown(console: Console, figures: Callable[[], Figures]) -> Iterator[View]:
    """A view that fits `console`, for the block's time."""
    if not console.is_terminal:
        yield Lines(console, figures)
        return
    screen = Screen(console, figures)
    with Live(screen, console=console, refresh_per_second=8, transient=True):
        yield screen


class Lines:
    """Each event is a line, and every `LINE_EVERY_S` the figures are."""

    def __init__(self, console: Console, figures: Callable[[], Figures]) -> None:
        self._console = console
        self._figures = figures
        self._start_s = self._last_s = time.monotonic()

    def phase(self, title: str) -> None:
        self._say(f"== {title}")

    def note(self, text: str) -> None:
        self._say(f"   {text}")

    def check(self, check: Check) -> None:
        self._say(f"   {'held  ' if check.held else 'FAILED'} {check.name}: {check.detail}")

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._last_s < LINE_EVERY_S:
            return
        self._last_s = now
        f = self._figures()
        if f.sent:
            by_version = " ".join(f"{name}={count}" for name, count in f.answers.items())
            self._say(
                f"   sent={f.sent} answered={f.answered} waiting={f.waiting} lost={f.lost} wrong={f.wrong} "
                f"{by_version} p50={f.p50_ms:.1f}ms p99={f.p99_ms:.1f}ms cloud: results={f.results} samples={f.samples}"
                f"{' CUT' if f.cloud_cut else ''}"
            )

    def _say(self, text: str) -> None:
        line = f"{time.monotonic() - self._start_s:6.1f} s {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Screen:
    """A panel redrawn in place, with the figures and answers a second by version; events scroll by above it."""

    def __init__(self, console: Console, figures: Callable[[], Figures]) -> None:
        self._console = console
        self._figures = figures
        self._title = ""
        self._history: deque[dict[str, int]] = deque(maxlen=SAMPLES + 1)
        self._sampled_s = 0.0

    def phase(self, title: str) -> None:
        self._title = title
        self._console.print(Text(title, style="bold"))

    def note(self, text: str) -> None:
        self._console.print(Text(f"  {text}", style="dim"))

    def check(self, check: Check) -> None:
        mark = Text("  ✔ ", style="green") if check.held else Text("  ✘ ", style="bold red")
        self._console.print(Text.assemble(mark, f"{check.name}: ", (check.detail, "dim")))

    def tick(self) -> None:
        """Nothing to do: rich's own thread redraws."""

    def __rich__(self) -> RenderableType:
        f = self._figures()
        now = time.monotonic()
        if now - self._sampled_s >= SAMPLE_S:
            self._sampled_s = now
            self._history.append(f.answers)
        content = Group(_numbers(f), _watches(f), *_chart(list(self._history)))
        return Panel(content, title=self._title, border_style="blue")


def _numbers(f: Figures) -> Table:
    table = Table.grid(padding=(0, 3))
    good, bad = "green", "bold red"
    table.add_row(
        Text(f"sent {f.sent}"),
        Text(f"answered {f.answered}"),
        Text(f"on the way {f.waiting}"),
        Text(f"lost {f.lost}", style=bad if f.lost else good),
        Text(f"wrong {f.wrong}", style=bad if f.wrong else good),
        Text(f"p50 {f.p50_ms:.1f} ms, p99 {f.p99_ms:.1f} ms"),
    )
    link = Text("CUT OFF", style="bold red") if f.cloud_cut else Text("connected", style=good)
    table.add_row(Text("cloud ") + link, Text(f"results {f.results}"), Text(f"samples {f.samples}"))
    return table


def _watches(f: Figures) -> Text:
    return Text("   ").join(Text(f"{name}: ") + Text(doing, style="bold") for name, doing in f.activities.items())


def _chart(history: Sequence[dict[str, int]]) -> list[Text]:
    """A line a version: answers in each half second."""
    names = list(history[-1]) if history else []
    lines = []
    for n, name in enumerate(names):
        counts = [entry.get(name, 0) for entry in history]
        steps = [after - before for before, after in pairwise(counts)]
        top = max([*steps, 1])
        bars = "".join(_BARS[min(8, -(-8 * step // top))] for step in steps)
        rate = (steps[-1] if steps else 0) / SAMPLE_S
        lines.append(Text(f"{name:>4} {rate:4.0f}/s ") + Text(bars, style=_COLOURS[n % len(_COLOURS)]))
    return lines


def summary(console: Console, checks: Sequence[Check]) -> None:
    """Prints the closing table."""
    table = Table(title="What was promised, and what was seen", title_justify="left")
    table.add_column("Promise")
    table.add_column("Held")
    table.add_column("Seen")
    for check in checks:
        mark = Text("yes", style="green") if check.held else Text("NO", style="bold red")
        table.add_row(Text(check.name), mark, Text(check.detail))
    console.print(table)
