"""The core's store of shadows: requests in the order in which they came, on a thread of its own, answers on the loop.

What it says is published along the subscriptions whose source is GGShadowService. Belongs to the loop's thread; nothing
here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from agent.shadows.answers import OPERATIONS, THING, TOPIC, Message, answer, refusal
from agent.shadows.document import ShadowError, token_of
from agent.shadows.files import ShadowFiles

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
Publish = Callable[[str, bytes], None]


class Shadows:
    """All shadows of this core.

    Args:
        state: the state directory.
        publish: gets the topic and payload of all that is to be said.
    """

    def __init__(self, state: Path, loop: asyncio.AbstractEventLoop, publish: Publish) -> None:
        self._files = ShadowFiles(state)
        self._loop = loop
        self._publish = publish
        self._thread = ThreadPoolExecutor(1, "shadows")
        self._waiting = 0

    def receive(self, topic: str, payload: bytes, done: Callable[[], None]) -> None:
        """Takes a message on a shadow's topic; all others it is sent, its own answers among them, it lets be.

        Args:
            done: called once its answers are published.
        """
        match = TOPIC.fullmatch(topic)
        if match is None:
            done()
        else:
            self._ask(match["thing"], match["operation"], payload, lambda _: done())

    def call(self, thing: str, operation: str, payload: bytes, done: Callable[[bytes], None]) -> None:
        """Does what a function asks; `done` gets the answer, an error's ``{code, message}`` too."""
        if not THING.fullmatch(thing) or operation not in OPERATIONS:
            place = f"$aws/things/{thing}/shadow/{operation}"
            done(refusal(place, ShadowError(400, "Invalid thing name or operation"), None, int(time.time()))[1])
        else:
            self._ask(thing, operation, payload, done)

    def close(self) -> None:
        """Ends the thread, once it has done what it was asked. Blocks until then: not for the loop's thread."""
        self._thread.shutdown()

    def _ask(self, thing: str, operation: str, payload: bytes, done: Callable[[bytes], None]) -> None:
        if self._waiting >= MAX_WAITING:
            self._say(thing, operation, payload, ShadowError(429, "Too many requests"), done)
            return
        self._waiting += 1
        work = self._loop.run_in_executor(self._thread, self._work, thing, operation, payload)
        work.add_done_callback(partial(self._worked, thing, operation, payload, done))

    def _work(self, thing: str, operation: str, payload: bytes) -> list[Message]:
        before = self._files.read(thing)
        after, messages = answer(thing, operation, payload, before, int(time.time()))
        if after is not before:
            self._files.write(thing, after)
        return messages

    def _worked(
        self,
        thing: str,
        operation: str,
        payload: bytes,
        done: Callable[[bytes], None],
        work: asyncio.Future[list[Message]],
    ) -> None:
        self._waiting -= 1
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            for topic, said in work.result():
                self._publish(topic, said)
            done(work.result()[0][1])
            return
        log.error("the shadow of %s: %s", thing, error)
        told = error if isinstance(error, ShadowError) else ShadowError(500, "Internal service failure")
        self._say(thing, operation, payload, told, done)

    def _say(
        self, thing: str, operation: str, payload: bytes, error: ShadowError, done: Callable[[bytes], None]
    ) -> None:
        place = f"$aws/things/{thing}/shadow/{operation}"
        topic, said = refusal(place, error, token_of(payload), int(time.time()))
        self._publish(topic, said)
        done(said)
