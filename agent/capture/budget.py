"""How many bytes of samples may be kept a day, and which: the most informative. Pure; the clock is an argument.

A stream is decided as it comes, so that nobody knows what the rest of the day will bring. What came before tells: the
budget keeps a histogram of the values that were offered (weighed by bytes, old ones fading) and how many bytes came in
each hour of the day, and admits what lies above the value whose upper share would just fill what is left of the day. So
the threshold falls where less comes than was thought and rises where more comes, and what is left at the day's end is
given out.

Days are UTC's. A clock that is set back begins no second day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

DAY_S: Final = 86_400.0
BINS: Final = 128
FADE_S: Final = 6 * 3600.0  # the time constant of the histogram
LEAST_AGE_S: Final = 60.0  # what came in less time tells no rate
FREE: Final = 1 / 16  # of a day's budget, given out in the first hour of all, while next to nothing is known
FREE_S: Final = 3600.0
HOURS: Final = 24
FORESIGHT_S: Final = 5.0  # for so long the same is thought of the rest of the day
LEASES: Final = 16  # of a day: how often the count is written to the disk


class Budget:
    """The bytes of one day.

    Args:
        bytes_per_day: how many may be admitted; None: any number.

    Attributes:
        spent: bytes that were admitted today.
        threshold: values above it are admitted now.
    """

    def __init__(self, bytes_per_day: int | None) -> None:
        self._most = bytes_per_day
        self._day = 0
        self.spent = 0
        self.threshold = 0.0
        self._leased = 0
        self._histogram = [0.0] * BINS
        self._since: float | None = None  # when the histogram begins; seconds since 1970
        self._faded = 0.0
        self._usual: list[float | None] = [None] * HOURS  # bytes offered in each hour of the day, over the days
        self._offered = [0.0] * HOURS  # today
        # When it was thought what the rest of the day will bring, and for each byte of the histogram how many.
        self._foreseen = 0.0, 0.0
        self._first_hour = 0  # of today that was seen as a whole

    def admit(self, value: float, size: int, now: float, random: Callable[[], float], *, wanted: bool = False) -> bool:
        """Whether a sample is kept; its bytes are spent then.

        Args:
            value: what it is worth, in [0, 1].
            size: its bytes as they are sent.
            now: seconds since 1970.
            random: decides between equals at the threshold.
            wanted: whether it is kept whatever it is worth, as long as there is anything left.
        """
        if self._most is None:
            self.spent += size
            return True
        self.turn(now)
        at = min(int(value * BINS), BINS - 1)
        self._note(at, size, now)
        left = min(self._most, self._granted) - self.spent
        if size > left or not (wanted or self._is_free(size, now) or self._is_above(at, now, random)):
            return False
        self.spent += size
        return True

    def give_back(self, size: int) -> None:
        """That what was admitted is not kept after all."""
        self.spent -= size

    def turn(self, now: float) -> None:
        """Begins a new day where it is one."""
        day = int(now // DAY_S)
        if day < self._day - 1:  # the clock was far ahead: from now on by this one, with what is spent
            self._day = day
        if day <= self._day:
            return
        if self._day == day - 1:
            for hour in range(self._first_hour, HOURS):
                before, offered = self._usual[hour], self._offered[hour]
                self._usual[hour] = offered if before is None else (before + offered) / 2
        self._first_hour = 0 if self._day == day - 1 else int(now % DAY_S // 3600) + 1
        self._day, self.spent, self._leased, self._offered = day, 0, 0, [0.0] * HOURS

    def _note(self, at: int, size: int, now: float) -> None:
        if self._since is None:
            self._since = self._faded = now
        if now - self._faded > FADE_S / 16:
            keep = math.exp((self._faded - now) / FADE_S)
            self._histogram = [each * keep for each in self._histogram]
            self._faded = now
        self._histogram[at] += size
        self._offered[int(now % DAY_S // 3600)] += size

    def _is_free(self, size: int, now: float) -> bool:
        assert self._most is not None
        assert self._since is not None
        return now - self._since < FREE_S and self.spent + size <= self._most * FREE

    def _is_above(self, at: int, now: float, random: Callable[[], float]) -> bool:
        """Whether a value of this bin is among those that fill what is left of the day."""
        assert self._most is not None
        if not 0 <= now - self._foreseen[0] < FORESIGHT_S:
            self._foreseen = now, max(self._expected(now), 1.0) / sum(self._histogram)
        room = (self._most - self.spent) / self._foreseen[1]
        for place in range(BINS - 1, -1, -1):
            if room < self._histogram[place]:
                self.threshold = (place + 1 - room / self._histogram[place]) / BINS
                return at > place or (at == place and random() * self._histogram[place] < room)
            room -= self._histogram[place]
        self.threshold = 0.0
        return True

    def _expected(self, now: float) -> float:
        """The bytes that the rest of the day will offer: as usual at these hours, else at the rate of late."""
        assert self._since is not None
        age_s = max(now - self._since, LEAST_AGE_S)
        per_hour = sum(self._histogram) / (FADE_S * -math.expm1(-age_s / FADE_S)) * 3600
        hour, left = int(now % DAY_S // 3600), 1 - now % 3600 / 3600
        busy = self._busy(hour)
        ahead = [per_hour if usual is None else usual * busy for usual in self._usual[hour:]]
        return ahead[0] * left + sum(ahead[1:])

    def _busy(self, hour: int) -> float:
        """How much more than usual came today, up to now; from 1/4 to 4."""
        known = [(offered, usual) for offered, usual in zip(self._offered[:hour], self._usual, strict=False) if usual]
        if len(known) < 2:
            return 1.0
        return min(max(sum(o for o, _ in known) / sum(u for _, u in known), 0.25), 4.0)

    def told(self) -> dict[str, Any]:
        """The count of today, for `marram status`; `threshold`: values above it are kept now."""
        return {"bytes": self.spent, "most": self._most, "threshold": round(self.threshold, 4)}

    # -- over a restart -----------------------------------------------------------------------------------------------
    #
    # The count is not written with each sample: a part of the budget is taken on lease, written to the disk, and used
    # up. After a crash what was leased counts as spent, so that a day never gets more than its budget; a part of it may
    # be lost. The first lease of a day needs no writing before: a crash within that moment may spend it twice.

    @property
    def _lease(self) -> int:
        return max(1, (self._most or 0) // LEASES)

    @property
    def _granted(self) -> int:
        return self._leased or self._lease

    def wanted(self) -> int | None:
        """What is to be leased next, once half of the last lease is used up: a count to write, then to `grant`."""
        if self._most is None or self._leased >= self._most:
            return None
        if self._leased and self._leased - self.spent > self._lease / 2:
            return None
        return min(max(self._leased, self.spent) + 2 * self._lease, self._most)

    def grant(self, day: int, leased: int) -> None:
        """That this lease is on the disk."""
        if day == self._day:
            self._leased = max(self._leased, leased)

    @property
    def day(self) -> int:
        """The day that is counted, in days since 1970."""
        return self._day

    def snapshot(self, spent: int) -> dict[str, Any]:
        """What the disk is to know, for `restore`. `spent`: the lease, or at the end what was spent."""
        values = [round(each, 1) for each in self._histogram]
        return {
            "day": self._day,
            "spent": spent,
            "since": self._since,
            "faded": self._faded,
            "histogram": values,
            "usual": self._usual,
            "offered": self._offered,
        }

    def restore(self, found: Mapping[str, Any], now: float) -> None:
        """Goes on with the count of before; one that cannot be used begins anew."""
        try:
            day, spent, histogram = int(found["day"]), int(found["spent"]), [float(x) for x in found["histogram"]]
            since, faded = float(found["since"]), float(found["faded"])
            usual = [None if x is None else float(x) for x in found["usual"]]
            offered = [float(x) for x in found["offered"]]
        except (KeyError, TypeError, ValueError):
            return
        if len(usual) == len(offered) == HOURS:
            self._usual, self._offered = usual, offered
        if len(histogram) == BINS and math.isfinite(sum(histogram)) and since <= faded <= now + DAY_S:
            self._histogram, self._since, self._faded = histogram, since, faded
        if day >= 0:
            self._day, self.spent, self._leased = day, max(0, spent), max(0, spent)
