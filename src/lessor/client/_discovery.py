# SPDX-License-Identifier: Apache-2.0
"""Registration and discovery: a service registers under a name, and others see its instances come and go.

Laws
- An instance is the key `service/address`. It is there exactly as long as its lease.
- A registration whose lease is lost registers anew, with a new lease, as soon as the server can be reached.
- A discovery is a view that follows in the background. Its iterator yields the differences between the view and what it
  has yielded so far; an instance that came and went between two of its steps is not shown.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, NamedTuple

from lessor.client._arguments import checked
from lessor.client._batches import AsyncBatches
from lessor.client._caller import insist
from lessor.client._calls import Calls
from lessor.client._errors import ClientError, LeaseLost
from lessor.client._lease import AsyncLease
from lessor.client._mirror import follow
from lessor.client._requests import Bytes, to_bytes


class Instance(NamedTuple):
    """A registered instance of a service."""

    address: str
    value: bytes  # what the instance says about itself
    lease_id: int
    token: int  # the key's create revision: of two instances that claim an address, the later has the greater


class Change(NamedTuple):
    """One change of a discovery. A vanished instance is shown as it was last."""

    kind: Literal["appeared", "changed", "vanished"]
    instance: Instance


@checked
class AsyncRegistration:
    """`async with client.register("web", "10.0.0.5:80", 10):`: registered when the block begins, gone at its end.

    Without a block: `registration = await client.register(...).start()`, and `await registration.stop()`.
    """

    def __init__(
        self, calls: Calls, make_lease: Callable[[], AsyncLease], service: str, address: str, value: Bytes
    ) -> None:
        self._calls = calls
        self._make_lease = make_lease
        self._key = f"{service}/{address}"
        self._value = to_bytes(value)
        self._lease: AsyncLease | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: ClientError | None = None

    async def __aenter__(self) -> "AsyncRegistration":
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> "AsyncRegistration":
        """Registers, and returns itself when that is done. Raises as `grant` and `put` do."""
        if self._task is None:
            await self._register()
            self._task = self._calls.spawn(self._stay())
        return self

    async def stop(self) -> None:
        """Ends the registration; the key is gone at once where the server can be reached, after the TTL otherwise."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._lease is not None:
            with suppress(ClientError):
                await self._lease.revoke()

    @property
    def registered(self) -> bool:
        """Whether it is certainly registered at this moment. While it is not, it tries to register anew."""
        return self._task is not None and self._lease is not None and self._lease.alive

    def check(self) -> None:
        """Raises the error that ended the registration for good: the server forbids it, or the client was closed."""
        if self._error is not None:
            raise self._error

    async def _register(self) -> None:
        lease = self._make_lease()
        try:
            await lease.grant()
            await self._calls.put(self._key, self._value, lease_id=lease.id)
        except BaseException:
            with suppress(ClientError):
                await lease.revoke()
            raise
        self._lease = lease

    async def _stay(self) -> None:
        try:
            while self._lease is not None:
                await self._lease.lost.wait()
                with suppress(LeaseLost):  # the new lease, before the key was written
                    await insist(self._register)
        except ClientError as error:
            self._error = error


@checked
class AsyncDiscovery(AsyncBatches[Change]):
    """`async with client.discover("web") as web:`: `web.instances` at any time, or `async for change in web`."""

    def __init__(self, calls: Calls, service: str) -> None:
        super().__init__()
        self._calls = calls
        self._prefix = f"{service}/".encode()
        self._now: dict[bytes, Instance] = {}
        self._reported: dict[bytes, Instance] = {}
        self._news: dict[bytes, None] = {}  # in the order of their first change since the last report
        self._changed = asyncio.Event()
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._end: BaseException | None = None

    async def __aenter__(self) -> "AsyncDiscovery":
        """Returns when the view shows what is there. Raises as `get` does."""
        if self._task is None:
            self._task = self._calls.spawn(self._follow())
        await self._begun.wait()
        if self._end is not None:
            raise self._end
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances, as far as is known; while the server cannot be reached, those that were known last."""
        return tuple(self._now.values())

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of `instances`."""
        return tuple(instance.address for instance in self.instances)

    async def aclose(self) -> None:
        """Ends the following; the view stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def more(self) -> Sequence[Change]:
        """The changes since the last time; at first, all instances. Raises the error that ended the view."""
        await self.__aenter__()
        while not (changes := self._differences()):
            if self._end is not None:
                raise self._end
            self._changed.clear()
            await self._changed.wait()
        return changes

    def _differences(self) -> list[Change]:
        changes = []
        for key in self._news:
            before, now = self._reported.pop(key, None), self._now.get(key)
            if now is not None:
                self._reported[key] = now
            if now == before:
                continue
            if now is None:
                if before is not None:
                    changes.append(Change("vanished", before))
            else:
                changes.append(Change("appeared" if before is None else "changed", now))
        self._news.clear()
        return changes

    async def _follow(self) -> None:
        try:
            async with aclosing(follow(self._calls, self._prefix)) as steps:
                async for keys, changed in steps:
                    for key in changed:
                        self._news[key] = None
                        kv = keys.get(key)
                        if kv is None:
                            self._now.pop(key, None)
                            if key not in self._reported:
                                del self._news[key]
                        else:
                            address = key.removeprefix(self._prefix).decode(errors="replace")
                            self._now[key] = Instance(address, kv.value, kv.lease, kv.create_revision)
                    self._begun.set()
                    self._changed.set()
        except ClientError as error:
            self._end = error
        except asyncio.CancelledError:
            self._end = StopAsyncIteration()
            raise
        finally:
            self._begun.set()
            self._changed.set()
