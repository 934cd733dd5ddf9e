"""What waits for a worker: a queue bounded in requests and in bytes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from agent.inference.requests import Request

MAX_QUEUED: Final = 1024  # Greengrass V1's work queue
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024


class WorkQueue:
    """Requests in the order in which they came. Those that are admitted in any case take no room from the others.

    Attributes:
        requests: the same, to look at.
    """

    __slots__ = ("_bytes", "_count", "requests")

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self._bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return len(self.requests)

    def put(self, request: Request) -> bool:
        """Adds it at the end; returns False where there is no room."""
        if not request.admitted and not self.has_room(len(request.payload)):
            return False
        self.requests.append(request)
        self._note(request, 1)
        return True

    def _note(self, request: Request, change: int) -> None:
        if not request.admitted:
            self._count += change
            self._bytes += change * len(request.payload)

    @property
    def is_crowded(self) -> bool:
        """Whether it is more than half full."""
        return 2 * self._count > MAX_QUEUED or 2 * self._bytes > MAX_QUEUED_BYTES

    def has_room(self, size: int) -> bool:
        """Whether a request of so many bytes would be taken."""
        return self._count < MAX_QUEUED and self._bytes + size <= MAX_QUEUED_BYTES

    def get(self) -> Request:
        """Takes the oldest.

        Raises:
            IndexError: there is none.
        """
        request = self.requests.popleft()
        self._note(request, -1)
        return request

    def put_back(self, requests: list[Request]) -> None:
        """Puts what was taken before at the front again, beyond the bounds if need be: it had its place."""
        self.requests.extendleft(reversed(requests))
        for request in requests:
            self._note(request, 1)

    def emptied(self) -> Iterator[Request]:
        """All of them, oldest first, each taken as it is asked for."""
        while self.requests:
            yield self.get()
