"""Whether packets come so quickly on a connection that acknowledgements wait for the next packet. Pure.

Ours leave with what is written next, the broker's are read with what it sends next. An acknowledgement by itself costs
a write or a read and a wake-up on either side: a tenth of a request's time where one request comes after the other on
one core. Not so where the other side waits for it: a broker that sends one message at a time, or one without
TCP_NODELAY, whose next packet waits for our acknowledgement of this one.
"""

from __future__ import annotations

LOOK_S = 0.005
MANY = 8  # reads between two looks with which it begins
FEW = 3  # with fewer it is over
# So many looks in a row have to find many, and twice as many each time that it was soon over.
LOOKS_FIRST = 4
LOOKS_MOST = 1 << 14
PROVEN = 16  # looks after which it was a gain


class Pace:
    """One connection's. `look` is to be called `LOOK_S` after something was heard, and as often as it asks for.

    Attributes:
        brisk: acknowledgements wait.
        heard: reads since the last look; the reader counts them.
    """

    __slots__ = ("_looks", "_wanted", "brisk", "heard")

    def __init__(self) -> None:
        self.brisk = False
        self.heard = 0
        self._looks = 0  # in a row, while it is brisk or before it may be
        self._wanted = LOOKS_FIRST

    def look(self) -> bool:
        """Judges by what was heard since the last look; returns whether to look again, even if nothing comes."""
        heard, self.heard = self.heard, 0
        self._looks += 1
        if self.brisk:
            if heard < FEW:
                self._wanted = LOOKS_FIRST if self._looks > PROVEN else min(2 * self._wanted, LOOKS_MOST)
                self.brisk, self._looks = False, 0
        elif heard < MANY:
            self._looks = 0
        elif self._looks >= self._wanted:
            self.brisk, self._looks = True, 0
        return self.brisk or self._looks > 0
