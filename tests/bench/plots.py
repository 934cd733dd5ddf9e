"""Plots as SVG, by hand: bars with intervals, and lines over sizes. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tests.bench.summary import Figure

WIDTH = 760
LABEL = 220
ROW = 24
OURS, OTHERS, INK, PAPER = "#1b7f5c", "#8d99a6", "#222", "#fff"


def bars(title: str, rows: Sequence[tuple[str, Figure, bool]], unit: str) -> str:
    """Horizontal bars from zero, with their intervals. Rows: (label, figure, whether it is ours)."""
    height = 40 + ROW * len(rows)
    most = max(figure.high for _, figure, _ in rows) or 1.0
    scale = (WIDTH - LABEL - 110) / most
    parts = [_text(8, 20, f"{title} ({unit})", weight="bold")]
    for n, (label, figure, ours) in enumerate(rows):
        y = 34 + ROW * n
        parts.append(_text(LABEL - 8, y + 14, label, anchor="end"))
        parts.append(
            f'<rect x="{LABEL}" y="{y + 2}" width="{figure.median * scale:.1f}" height="{ROW - 8}" '
            f'fill="{OURS if ours else OTHERS}"/>'
        )
        low, high, middle = LABEL + figure.low * scale, LABEL + figure.high * scale, y + ROW / 2 - 2
        parts.append(f'<path d="M{low:.1f} {middle} H{high:.1f}" stroke="{INK}" stroke-width="1.5"/>')
        parts.append(_text(high + 6, y + 14, _number(figure.median)))
    return _svg(height, parts)


def lines(title: str, series: dict[str, list[tuple[float, float]]], x_unit: str) -> str:
    """Lines over sizes, both axes logarithmic; each series relative to its first point."""
    height, left, bottom = 280, 60, 240
    points = {name: [(x, y / found[0][1]) for x, y in found] for name, found in series.items() if found}
    xs = [x for found in points.values() for x, _ in found]
    ys = [y for found in points.values() for _, y in found]
    x0, x1 = math.log10(min(xs)), math.log10(max(xs)) or 1.0
    y0, y1 = min(-0.5, math.log10(min(ys))), max(0.5, math.log10(max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (math.log10(x) - x0) / ((x1 - x0) or 1) * (WIDTH - left - 180)
        return across, bottom - (math.log10(y) - y0) / (y1 - y0) * (bottom - 40)

    parts = [_text(8, 20, f"{title}: each figure relative to its first, by {x_unit}", weight="bold")]
    for size in sorted(set(xs)):
        across, _ = at(size, 1)
        parts.append(_text(across, bottom + 18, _number(size), anchor="middle"))
    for power in range(math.ceil(y0), math.floor(y1) + 1):
        _, down = at(min(xs), 10.0**power)
        parts.append(f'<path d="M{left} {down:.1f} H{WIDTH - 170}" stroke="#ddd"/>')
        parts.append(_text(left - 6, down + 4, f"{10.0**power:g} x", anchor="end"))
    for n, (name, found) in enumerate(points.items()):
        colour = (OURS, "#b5541c", "#3a5fa0", "#7a3e9d")[n % 4]
        path = " L".join(f"{across:.1f} {down:.1f}" for across, down in (at(*point) for point in found))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        across, down = at(*found[-1])
        parts.append(_text(across + 8, down + 4, name, colour=colour))
    return _svg(height, parts)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = INK) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    paper = f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>'
    return "\n".join((head, paper, *parts, "</svg>")) + "\n"
