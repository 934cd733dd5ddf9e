"""A TCP relay between the agent and the cloud's broker: the cable that the demonstration pulls.

While it is cut, the connections through it are reset and new ones are refused. It runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST


class Relay:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`. Its methods block until done; any thread may call them."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.forwarded = 0  # connections since the start
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self.restore()

    @property
    def is_cut(self) -> bool:
        return self._server is None

    def cut(self) -> None:
        """Resets every connection and refuses new ones. Idempotent."""
        self._run(self._cut())

    def restore(self) -> None:
        """Takes connections again. Idempotent."""
        self._run(self._restore())

    def stop(self) -> None:
        """Cuts, and ends the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _restore(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        # One turn, so that the transports have really closed when this returns.
        await asyncio.sleep(0)

    async def _end(self) -> None:
        await self._cut()
        forwarding = asyncio.all_tasks() - {asyncio.current_task()}
        for task in forwarding:
            task.cancel()
        await asyncio.gather(*forwarding, return_exceptions=True)
        await asyncio.sleep(0)  # the transports' closing callbacks

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        if self._server is None:  # cut meanwhile
            writer.transport.abort()
            far_writer.transport.abort()
            return
        self.forwarded += 1
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._writers -= pair


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
