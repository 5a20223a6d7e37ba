# SPDX-License-Identifier: Apache-2.0
"""Follows the events of leases over lost connections and restarts of the server: for `lease watch` and `top`.

Laws
- Events from the time without a connection are reported when there is one again, as far as a list of the leases shows
  them: which leases were granted and live, which are gone. Nothing is reported twice.
- The first attempt is not repeated: a server that is not there at all is an error.

Theory of operation. The server keeps no history of leases, so each connection begins with both: the events from now on,
and a list. The list is read in pages while events come. The events are read meanwhile, because the server cuts off a
reader that stays away, but they are held back. A lease with a held event may be in the list or not; its first held
event shows whether it lived when the connection began. `Ledger` finds out from both which leases lived at that instant,
and compares them with those that lived when the last connection ended.

Worked example. The connection is lost while 1 and 2 live; then 2 expires and 3 is granted. On the new connection 1 is
revoked while the list is read, which shows 3 alone. The held event "1 revoked" shows that 1 lived at the beginning. So
the report is: 2 ended, 3 granted, 1 revoked.

Not known, and not reported: leases that were granted and ended while there was no connection; whether a lease that is
gone expired or was revoked (it "ended"); a lease that ended and was granted again under its ID with the same TTL.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lessor.api.proto import leases_pb2
from lessor.cli.failure import ERROR, Failure
from lessor.cli.lease_list import ORDERS, PAGE_LEASES, no_service

if TYPE_CHECKING:
    from lessor.client import AsyncClient, ClientError

NO_SERVICE = "this server tells no lease events (it is not Lessor)"
_GRANTED = leases_pb2.LeaseEvent.GRANTED
_ENDED = leases_pb2.LeaseEvent.ENDED


async def events(client: "AsyncClient") -> AsyncIterator[leases_pb2.LeaseWatchResponse]:
    """The server's responses, over one connection. Failure for a server that has no such service."""
    from lessor.client import ServerError

    try:
        async for response in client.lease_events():
            yield response
    except ServerError as error:
        if no_service(error):
            raise Failure(ERROR, NO_SERVICE) from None
        raise


def comes_back(error: "ClientError") -> bool:
    """Whether another attempt is worthwhile: the connection is lost, the server away, or the reader was too slow."""
    from lessor.client import ServerError
    from lessor.client._caller import passing

    return passing(error) or (isinstance(error, ServerError) and error.code.name == "RESOURCE_EXHAUSTED")


async def resumed(
    attempt: "Callable[[Callable[[], None]], Awaitable[None]]", lost: "Callable[[ClientError], None]"
) -> None:
    """Runs `attempt` again and again, with a function as argument that it calls once it has begun well.

    `lost` is called when an attempt that had begun ends, and not again until another has begun. Raises errors that
    `comes_back` denies, and every error before the first attempt has begun.
    """
    from lessor.cli.tasks import sleep
    from lessor.client import ClientError
    from lessor.client._caller import Backoff

    backoff, well, ever = Backoff(), False, False

    def begun() -> None:
        nonlocal well, ever
        well = ever = True
        backoff.reset()

    while True:
        try:
            await attempt(begun)
        except ClientError as error:
            if not ever or not comes_back(error):
                raise
            if well:
                lost(error)
            well = False
        await sleep(backoff.next_s())


class Ledger:
    """The leases that live, with their TTLs, as far as has been reported."""

    def __init__(self) -> None:
        self.living: dict[int, int] | None = None  # None: there was no list yet

    def catch_up(
        self, listed: Mapping[int, int], since: Sequence[leases_pb2.LeaseEvent]
    ) -> list[leases_pb2.LeaseEvent]:
        """Takes in a list that was read while the events `since` came; returns the unseen events before those."""
        then = dict(listed)
        for event in reversed(since):
            if event.type == _GRANTED:
                then.pop(event.ID, None)
            else:
                then[event.ID] = event.TTL
        before = then if self.living is None else self.living
        unseen = [_event(_ENDED, *lease) for lease in before.items() if then.get(lease[0]) != lease[1]]
        unseen += [_event(_GRANTED, *lease) for lease in then.items() if before.get(lease[0]) != lease[1]]
        self.living = then
        self.note(since)
        return unseen

    def note(self, happened: Iterable[leases_pb2.LeaseEvent]) -> None:
        """Takes in events from the server. Does nothing before the first list."""
        if self.living is None:
            return
        for event in happened:
            if event.type == _GRANTED:
                self.living[event.ID] = event.TTL
            else:
                self.living.pop(event.ID, None)


def _event(kind: leases_pb2.LeaseEvent.Type, lease_id: int, ttl_s: int) -> leases_pb2.LeaseEvent:
    return leases_pb2.LeaseEvent(type=kind, ID=lease_id, TTL=ttl_s)


class Follower:
    """Gives all events of leases to `report`. `follow` is an attempt for `resumed`."""

    def __init__(self, client: "AsyncClient", report: Callable[[leases_pb2.LeaseWatchResponse], None]) -> None:
        self._client = client
        self._report = report
        self._ledger = Ledger()

    async def follow(self, begun: Callable[[], None]) -> None:
        """Follows over one connection, to its end, which is an error."""
        from lessor.cli.tasks import crew

        since: list[leases_pb2.LeaseWatchResponse] | None = []  # held while the list is read; None: it has been read
        first = self._ledger.living is None  # then no earlier event has to be reported first

        async def catch_up() -> None:
            nonlocal since
            listed: dict[int, int] = {}
            async for page in self._client.lease_list(order=ORDERS["id"], limit=PAGE_LEASES):
                listed.update((item.ID, item.TTL) for item in page.leases)
            held, since = since or [], None
            unseen = self._ledger.catch_up(listed, [event for response in held for event in response.events])
            begun()
            if unseen:
                self._report(leases_pb2.LeaseWatchResponse(header=page.header, events=unseen))
            for response in () if first else held:
                self._report(response)

        async with crew() as start:
            async for response in events(self._client):
                if response.created:
                    start(catch_up())
                elif since is not None:
                    since.append(response)
                else:
                    self._ledger.note(response.events)
                if first or since is None:
                    self._report(response)
