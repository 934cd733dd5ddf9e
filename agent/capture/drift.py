"""Whether what comes now is still distributed as what came first: a distance, streaming and in bounded memory. Pure.

The first values are the reference: of numbers their deciles are the bins, of anything else the commonest values. The
latest values are counted in a window. Two distances: the population stability index, the sum of (p - q) ln(p / q) over
the bins, with half a count more in each so that none is empty; and the greatest difference of the two cumulated
distributions over the bins, as in the Kolmogorov-Smirnov statistic.

Without any drift the index is about (bins - 1) (1 / reference + 1 / window) by chance alone: 0.05 with 10 bins, 1000
and 200. Source of the usual bounds (0.1 little, 0.25 much): N. Siddiqi, Credit Risk Scorecards, 2006.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

BINS: Final = 10
MAX_CLASSES: Final = 32
MAX_NAME: Final = 64  # characters of a class that is remembered
OTHER: Final = ""


def psi(reference: Sequence[int], recent: Sequence[int]) -> float:
    """The population stability index of two lists of counts of the same bins."""
    n, m, k = sum(reference) + len(reference) / 2, sum(recent) + len(recent) / 2, 0.5
    pairs = (((b + k) / m, (a + k) / n) for a, b in zip(reference, recent, strict=True))
    return sum((p - q) * math.log(p / q) for p, q in pairs)


def ks(reference: Sequence[int], recent: Sequence[int]) -> float:
    """The greatest difference of the cumulated distributions, in [0, 1]."""
    n, m = sum(reference) or 1, sum(recent) or 1
    pairs = zip(itertools.accumulate(reference), itertools.accumulate(recent), strict=True)
    return max((abs(a / n - b / m) for a, b in pairs), default=0.0)


DISTANCES: Final = {"psi": psi, "ks": ks}


class DriftMeter:
    """Compares the latest values with the first.

    Args:
        distance: a name of `DISTANCES`.
        reference: how many values are the reference.
        window: how many of the latest are compared with it.
    """

    def __init__(self, distance: str, reference: int, window: int) -> None:
        self._distance = DISTANCES[distance]
        self._wanted = reference
        self._window = window
        self._first: list[float | str] = []
        self._edges: list[float] = []
        self._classes: dict[str, int] = {}
        self._reference: list[int] = []
        self._recent: list[int] = []
        self._places: deque[int] = deque()
        self._since = 0
        self.distance: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the reference is."""
        return bool(self._reference)

    def take(self, value: float | str) -> bool:
        """Takes a value; whether it lies in a bin that is more frequent now than it was."""
        if not self._reference:
            self._gather(value)
            return False
        at = self._bin(value)
        self._places.append(at)
        self._recent[at] += 1
        if len(self._places) > self._window:
            self._recent[self._places.popleft()] -= 1
        if len(self._places) < self._window:
            return False
        self._since -= 1
        if self._since < 0 or self.distance is None:
            # As often as it can change much: each time costs some 5 us.
            self._since = self._window // 20
            self.distance = self._distance(self._reference, self._recent)
        return self._recent[at] * sum(self._reference) > self._reference[at] * self._window

    def _gather(self, value: float | str) -> None:
        self._first.append(value if not isinstance(value, str) else value[:MAX_NAME])
        if len(self._first) >= self._wanted:
            self._set_bins(self._first)
            for each in self._first:
                self._reference[self._bin(each)] += 1
            self._first = []

    def _set_bins(self, values: list[float | str]) -> None:
        numbers = sorted(each for each in values if not isinstance(each, str))
        if len(numbers) * 2 >= len(values):
            self._edges = sorted({numbers[len(numbers) * i // BINS] for i in range(1, BINS)})
            self._open(len(self._edges) + 1)
        else:
            common = [name for name, _ in Counter(map(str, values)).most_common(MAX_CLASSES)]
            self._classes = {name: at for at, name in enumerate((*common, OTHER))}
            self._open(len(self._classes))

    def _open(self, bins: int) -> None:
        self._reference, self._recent = [0] * bins, [0] * bins

    def _bin(self, value: float | str) -> int:
        if self._classes:
            return self._classes.get(str(value)[:MAX_NAME], len(self._classes) - 1)
        return bisect.bisect_right(self._edges, value) if not isinstance(value, str) else 0

    # -- over a restart -----------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any] | None:
        """The reference, for `restore`; None as long as it is not whole."""
        if not self._reference:
            return None
        return {"edges": self._edges, "classes": list(self._classes), "counts": self._reference}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Goes on with a reference of before; one that cannot be used is gathered anew."""
        try:
            edges = [float(each) for each in found["edges"]]
            classes = [str(each) for each in found["classes"]]
            counts = [int(each) for each in found["counts"]]
        except (KeyError, TypeError, ValueError):
            return
        if len(counts) == (len(classes) or len(edges) + 1) and edges == sorted(edges) and sum(counts) > 0:
            self._edges, self._classes = edges, {name: at for at, name in enumerate(classes)}
            self._open(len(counts))
            self._reference = counts
