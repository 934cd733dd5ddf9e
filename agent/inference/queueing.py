"""What waits for a worker: a queue bounded in requests and in bytes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from agent.inference.requests import Request

MAX_QUEUED: Final = 1024  # Greengrass V1's work queue
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024


class WorkQueue:
    """Requests in the order in which they came.

    Attributes:
        requests: the same, to look at.
    """

    __slots__ = ("_bytes", "requests")

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.requests)

    def put(self, request: Request) -> bool:
        """Adds it at the end; returns False where there is no room."""
        size = len(request.payload)
        if not self.has_room(size):
            return False
        self.requests.append(request)
        self._bytes += size
        return True

    def has_room(self, size: int) -> bool:
        """Whether a request of so many bytes would be taken."""
        return len(self.requests) < MAX_QUEUED and self._bytes + size <= MAX_QUEUED_BYTES

    def get(self) -> Request:
        """Takes the oldest.

        Raises:
            IndexError: there is none.
        """
        request = self.requests.popleft()
        self._bytes -= len(request.payload)
        return request

    def put_back(self, requests: list[Request]) -> None:
        """Puts what was taken before at the front again, beyond the bounds if need be: it had its place."""
        self.requests.extendleft(reversed(requests))
        self._bytes += sum(len(r.payload) for r in requests)

    def emptied(self) -> Iterator[Request]:
        """All of them, oldest first, each taken as it is asked for."""
        while self.requests:
            yield self.get()
