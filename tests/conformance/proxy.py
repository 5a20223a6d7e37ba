# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that misbehaves on demand, in a thread of its own.

with Proxy(server.address) as proxy:
    client = Client(proxy.address)
    proxy.cut()
"""

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class _Pair:
    """One connection through the proxy."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.there, self.back = asyncio.Event(), asyncio.Event()  # whether bytes pass to the target, and from it
        self.resume()

    def stall(self) -> None:
        self.there.clear()
        self.back.clear()

    def resume(self) -> None:
        self.there.set()
        self.back.set()

    def abort(self) -> None:
        self.resume()
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Forwards to `target` (host:port). Its methods may be called from any thread."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._pairs: set[_Pair] = set()
        self._refusing = False
        self.accepted = 0
        self.held = 0  # directions of connections in which something waits for `resume`
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Resets all connections."""
        self._each(_Pair.abort)

    def stall(self) -> None:
        """From now on nothing passes on the connections that there are; they stay open."""
        self._each(_Pair.stall)

    def stall_replies(self) -> None:
        """As `stall`, but what clients send still reaches the target."""
        self._each(lambda pair: pair.back.clear())

    def resume(self) -> None:
        """What was held back passes."""
        self._each(_Pair.resume)

    def refuse(self, refusing: bool) -> None:
        """Whether new connections are reset at once."""
        self._refusing = refusing

    def _each(self, action: Callable[[_Pair], object]) -> None:
        async def run() -> None:
            for pair in list(self._pairs):
                action(pair)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for pair in list(self._pairs):
                pair.abort()
            await asyncio.wait(tasks, timeout=0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        pair = _Pair()
        pair.writers.append(writer)
        self._pairs.add(pair)
        try:
            target_reader, target_writer = await asyncio.open_connection(self._host, self._port)
            pair.writers.append(target_writer)
            await asyncio.gather(
                _pump(self, pair, pair.there, reader, target_writer),
                _pump(self, pair, pair.back, target_reader, writer),
            )
        except OSError:
            pass  # the server is away: to the client it looks like a reset
        finally:
            pair.abort()
            self._pairs.discard(pair)


async def _pump(
    proxy: Proxy, pair: _Pair, flowing: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            if not flowing.is_set():
                proxy.held += 1
                await flowing.wait()
                proxy.held -= 1
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        for each in pair.writers:
            each.transport.abort()
