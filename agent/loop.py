"""The agent's event loop: asyncio's, but sockets that are busy are read within its poll.

For each event asyncio makes a turn of its loop: timers are looked at, the event becomes a handle in a queue, the handle
runs in a context. That is some twenty calls in Python, as many as a request's way through the agent takes without it.
Here a reader that `Turn.add_reader` has added is called by the selector itself, between two polls. asyncio gets its
turn as soon as there is anything for it: another descriptor's event, a timer that is due, or what a reader asked of the
loop. All else is asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
Flush = Callable[[], None]
Read = Callable[[], None]
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Turn:
    """When what was queued leaves: after what has been read was handled, or else in the loop's next turn.

    Whoever gathers writes (a link's stream, a worker's wire) asks here for its flush. Answers to what was just read
    leave before the loop polls again; a `call_soon` would cost each of them another turn and another poll. Belongs to
    the event loop's thread; never blocks.

    Attributes:
        reading: what was read is being handled.
        due: the flushes to be called then.
    """

    __slots__ = ("_loop", "_scheduled", "_selector", "due", "reading")

    def __init__(self, loop: asyncio.AbstractEventLoop, selector: _Selector | None = None) -> None:
        self._loop = loop
        self._selector = selector
        self.due: list[Flush] = []
        self.reading = False
        self._scheduled = False

    def soon(self, flush: Flush) -> None:
        """Has `flush` called once: when what is being read is handled, or in the loop's next turn."""
        self.due.append(flush)
        if not self.reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_now)

    def begin(self) -> None:
        """A callback begins to handle what it has read; `end` has to follow, whatever happens."""
        self.reading = True

    def end(self) -> None:
        """It is handled: what was queued meanwhile leaves."""
        self.reading = False
        if self.due:
            self.flush()

    def add_reader(self, descriptor: int, read: Read) -> None:
        """Has `read` called whenever there is something to read, between `begin` and `end`."""
        if self._selector is not None:
            self._selector.add_reader(descriptor, read)
        else:
            self._loop.add_reader(descriptor, self._read_alone, read)

    def remove_reader(self, descriptor: int) -> None:
        """Undoes `add_reader`, before the descriptor is closed. Idempotent."""
        if descriptor < 0:
            return  # it is closed
        if self._selector is not None:
            self._selector.remove_reader(descriptor)
        elif not self._loop.is_closed():
            self._loop.remove_reader(descriptor)

    def _read_alone(self, read: Read) -> None:
        self.begin()
        try:
            read()
        finally:
            self.end()

    def _scheduled_now(self) -> None:
        self._scheduled = False
        if self.due:
            self.flush()

    def flush(self) -> None:
        """What was queued leaves now."""
        due, self.due = self.due, []
        for flush in due:
            flush()


class _Selector(selectors.BaseSelector):
    """epoll for asyncio's own descriptors and for the readers that it calls by itself.

    Attributes:
        asked: the loop was asked for something since the last `select` began.
        turn: its loop's.
    """

    def __init__(self) -> None:
        self.asked = False
        self.turn: Turn
        self.failed: Callable[[Exception], None]
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._readers: dict[int, Read] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = _descriptor(fileobj)
        if descriptor in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._keys[descriptor] = key = selectors.SelectorKey(fileobj, descriptor, events, data)
        self._watch(descriptor, new=descriptor not in self._readers)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        self._watch(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = _descriptor(fileobj)
        self._keys[descriptor] = key = self._keys[descriptor]._replace(events=events, data=data)
        self._watch(descriptor)
        return key

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return _Map(self._keys)

    def close(self) -> None:
        self._epoll.close()
        self._keys.clear()
        self._readers.clear()

    def add_reader(self, descriptor: int, read: Read) -> None:
        new = descriptor not in self._readers and descriptor not in self._keys
        self._readers[descriptor] = read
        self._watch(descriptor, new=new)

    def remove_reader(self, descriptor: int) -> None:
        if self._readers.pop(descriptor, None) is not None:
            self._watch(descriptor)

    def _watch(self, descriptor: int, *, new: bool = False) -> None:
        """Tells epoll what is wanted of a descriptor now."""
        key, reader = self._keys.get(descriptor), descriptor in self._readers
        events = key.events if key else 0
        mask = select.EPOLLIN if reader or events & selectors.EVENT_READ else 0
        mask |= select.EPOLLOUT if events & selectors.EVENT_WRITE else 0
        if new:
            self._epoll.register(descriptor, mask)
        elif key or reader:
            self._epoll.modify(descriptor, mask)
        else:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                pass  # it was closed before, with which epoll forgot it

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """asyncio's events; returns without any where the time is up or a reader asked something of the loop."""
        self.asked = False
        until = None if timeout is None else monotonic() + timeout
        turn, readers, poll = self.turn, self._readers, self._epoll.poll
        found: list[tuple[selectors.SelectorKey, int]] = []
        while True:
            events = poll(timeout)
            turn.reading = True
            for descriptor, event in events:
                if event == _IN and descriptor in readers:  # nearly always
                    try:
                        readers[descriptor]()
                    except Exception as error:
                        self.failed(error)
                else:
                    found += self._other_event(descriptor, event)
            turn.reading = False
            if turn.due:
                due, turn.due = turn.due, []
                for flush in due:
                    flush()
            if self.asked or found or not events:
                return found
            if until is not None:
                timeout = until - monotonic()
                if timeout <= 0:
                    return found

    def _other_event(self, descriptor: int, event: int) -> list[tuple[selectors.SelectorKey, int]]:
        """asyncio's, and what happens to our readers' descriptors but for having something to read."""
        read = self._readers.get(descriptor)
        found = self._event(descriptor, event) if read is None or event & _OUT else []
        if read is not None and event != _OUT:
            try:
                read()
            except Exception as error:
                self.failed(error)
        return found

    def _event(self, descriptor: int, event: int) -> list[tuple[selectors.SelectorKey, int]]:
        key = self._keys.get(descriptor)
        if key is None:
            return []
        ready = (selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0) | (
            selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
        )
        return [(key, ready & key.events)]


class _Map(Mapping[Any, selectors.SelectorKey]):
    """What asyncio looks up: a descriptor or what has one."""

    def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
        self._keys = keys

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def __iter__(self) -> Iterator[Any]:
        return (key.fileobj for key in self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


class Loop(asyncio.SelectorEventLoop):
    """The event loop. `turn_of` gives its `Turn`.

    Attributes:
        before_thread: called before the loop gives work to a thread; a new one inherits this thread's processors.
        before_others: called before a child or a thread begins what may take long; a child inherits them as well.
    """

    before_thread: Callable[[], None]
    before_others: Callable[[], None]

    def __init__(self) -> None:
        self.before_thread = self.before_others = lambda: None
        self._busy = selector = _Selector()
        super().__init__(selector)
        self.turn = selector.turn = Turn(self, selector)
        selector.failed = lambda error: self.call_exception_handler(
            {"message": "a reader raised what it should have handled", "exception": error}
        )

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._busy.asked = True
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._busy.asked = True
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        self.before_thread()
        return super().run_in_executor(executor, func, *args)

    async def subprocess_exec(self, *args: Any, **more: Any) -> Any:
        self.before_others()
        return await super().subprocess_exec(*args, **more)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=Loop) as runner:
            _wait_for_children_without_threads(runner.get_loop())
            return runner.run(main)

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            return Loop()

    asyncio.set_event_loop_policy(Policy())
    return asyncio.run(main)


def _wait_for_children_without_threads(loop: asyncio.AbstractEventLoop) -> None:
    """As asyncio does by itself from Python 3.12 on: the thread that it starts for a child is waited for."""
    if sys.version_info < (3, 12):
        with contextlib.suppress(OSError):  # before Linux 5.3
            os.close(os.pidfd_open(os.getpid()))
            watcher = asyncio.PidfdChildWatcher()
            watcher.attach_loop(loop)
            asyncio.set_child_watcher(watcher)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    """The one that belongs to `loop`, which may be any of asyncio's."""
    if isinstance(loop, Loop):
        return loop.turn
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = Turn(loop)
    return turn
