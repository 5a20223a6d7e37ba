# SPDX-License-Identifier: Apache-2.0
"""One page of the live leases: filtered, in an order, from the end of the page before.

Laws
- A step is short. It looks at about LEASE_LIST_STEP leases, and at as many keys where a filter, a right or the page
  needs keys, but always at whole leases. The first step copies the index of leases, 5 ms for 300,000. Now and then a
  step sorts twice as many leases as a page holds, which takes as long for the largest page.
- The memory of a page is bounded by LEASE_PAGE_MAX and LEASE_PAGE_BYTES, beside a pointer for each lease.
- Over all pages of a list by ID or by remaining time, each lease that lives throughout and passes the filters appears
  at least once. By remaining time, a lease that is renewed while the list is made may appear twice. By number of keys,
  a lease whose number changes meanwhile may be missed.
- Nothing is kept between pages: a token is the place of the last lease of its page.

Theory of operation. The walk begins with a copy of the lessor's index, which is one pass in C, and takes it in steps. A
lease whose place is after the token and before the worst place found so far joins those found. When twice as many as
wanted are found, the worse half is dropped. So a page costs O(n) for n leases, whatever the order: 300,000 leases take
about 0.1 s of the processor, in steps of a millisecond; by key prefix 0.16 s. All 300,000 in pages of 10,000 take 3 s.
A tree by deadline would make a page cheap and each renewal dear, and most requests are renewals.

Worked example, by ID, limit 2, leases 5 1 4 2 3, four in a step: found 5 1 4 2, cut to 1 2 with `worst` 2; 3 is
after it. The page is 1 2, its token the place of 2; the next walk passes over all leases that are not after 2.

Does not do: taking turns with other calls (server/services/leases.py), permissions (permissions.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from heapq import nsmallest
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.state.lease import Lease
from lessor.state.leases import Lessor

_BY_ID: Final = leases_pb2.LeaseListRequest.ID
_BY_REMAINING: Final = leases_pb2.LeaseListRequest.REMAINING
_BY_KEYS: Final = leases_pb2.LeaseListRequest.KEYS
_RANKS: Final[dict[Any, Callable[[Lease], float]]] = {
    _BY_ID: lambda lease: 0.0,
    _BY_REMAINING: attrgetter("deadline_s"),
    _BY_KEYS: lambda lease: -len(lease.keys),
}
_TOKEN: Final = struct.Struct(">Bdq")  # order, rank, lease id

Place = tuple[float, int]  # of a lease in the order: its rank, then its id
_FIRST: Final[Place] = (float("-inf"), 0)  # before all leases
_LAST: Final[Place] = (float("inf"), 0)  # after all leases


class LeaseList:
    """One page under way. Call `step` until it returns True, then `page`."""

    __slots__ = (
        "_after",
        "_chosen",
        "_found",
        "_keys_limit",
        "_last",
        "_leases",
        "_limit",
        "_may_read",
        "_more",
        "_order",
        "_page",
        "_prefix",
        "_remaining_s_max",
        "_rest",
        "_room_bytes",
        "_shown",
        "_worst",
    )

    def __init__(
        self,
        leases: Lessor,
        request: leases_pb2.LeaseListRequest,
        may_read: Callable[[Lease], None] | None = None,
    ) -> None:
        """`may_read` raises the error that the caller gets for a lease that it may not read.

        Raises UNKNOWN_LEASE_ORDER, INVALID_PAGE_TOKEN.
        """
        self._leases = leases
        self._may_read = may_read
        self._order = request.order
        if self._order not in _RANKS:
            raise errors.UNKNOWN_LEASE_ORDER.error()
        self._prefix = request.key_prefix
        self._remaining_s_max = request.remaining_ms_max / 1000 if request.remaining_ms_max > 0 else None
        limit = request.limit if request.limit > 0 else limits.LEASE_PAGE_DEFAULT
        self._limit = min(limit, limits.LEASE_PAGE_MAX)
        self._keys_limit = min(max(request.keys_limit, 0), limits.LEASE_PAGE_KEYS_MAX)
        self._after = self._read_token(request.page_token) if request.page_token else _FIRST
        self._found: list[tuple[float, int, Lease]] = []
        self._worst = _LAST
        self._more = False  # whether a lease that passes was left out
        self._rest: Iterator[Lease] | None = None  # leases not looked at yet
        self._chosen: Iterator[tuple[float, int, Lease]] | None = None  # leases of the page that are not in it yet
        self._page = leases_pb2.LeaseListResponse()
        self._shown: list[Lease] = []  # the leases in the page
        self._last = _FIRST  # the place of the last item
        self._room_bytes = limits.LEASE_PAGE_BYTES

    def _read_token(self, token: bytes) -> Place:
        if len(token) != _TOKEN.size:
            raise errors.INVALID_PAGE_TOKEN.error()
        order, rank, lease_id = _TOKEN.unpack(token)
        if order != self._order or rank != rank:
            raise errors.INVALID_PAGE_TOKEN.error()
        return rank, lease_id

    def step(self, now_s: float, work_max: int = limits.LEASE_LIST_STEP) -> bool:
        """Does a piece of the work; returns whether that was the last one. Raises as `may_read` does."""
        work = 0
        if self._chosen is None:
            if self._rest is None:
                self._rest = iter(list(self._leases))
            leases, work = self._next(work_max)
            self._place(leases, float("inf") if self._remaining_s_max is None else now_s + self._remaining_s_max)
            if work >= work_max:
                return False
            self._cut()
            self._chosen = iter(self._found)
        for rank, lease_id, lease in self._chosen:
            if self._room_bytes <= 0:
                self._more = True
                break
            self._last = rank, lease_id
            self._add(lease, now_s)
            work += 1 + len(lease.keys) if self._keys_limit else 1
            if work >= work_max:
                return False
        return True

    def _next(self, work_max: int) -> tuple[list[Lease], int]:
        """The next leases whose keys pass, and the work done for them: below `work_max` when there are no more."""
        assert self._rest is not None
        if not self._prefix and self._may_read is None:
            leases = list(islice(self._rest, work_max))
            return leases, len(leases)
        leases, work = [], 0
        for lease in self._rest:
            work += 1 + len(lease.keys)
            if not lease.ended and self._passes(lease):
                leases.append(lease)
            if work >= work_max:
                break
        return leases, work

    def _passes(self, lease: Lease) -> bool:
        if self._may_read is not None:
            self._may_read(lease)
        prefix = self._prefix
        return not prefix or any(key.startswith(prefix) for key in lease.keys)

    def _place(self, leases: list[Lease], latest_s: float) -> None:
        """Takes in the leases that may belong to this page. Each page does this with every lease: it must be fast."""
        after, worst, rank_of = self._after, self._worst, _RANKS[self._order]
        first, last = after[0], worst[0]  # the rank alone turns most leases away
        self._found += [
            (rank, lease.id, lease)
            for rank, lease in zip(map(rank_of, leases), leases, strict=True)
            if first <= rank <= last
            and after < (rank, lease.id) < worst
            and not lease.ended
            and lease.deadline_s <= latest_s
        ]
        if len(self._found) >= 2 * self._limit:
            self._cut()

    def _cut(self) -> None:
        """Keeps the best of the leases found."""
        found = self._found
        found.sort()
        if len(found) > self._limit:
            del found[self._limit :]
            self._more = True
        if len(found) == self._limit:
            self._worst = found[-1][:2]

    def _add(self, lease: Lease, now_s: float) -> None:
        left_ms = max(int((lease.deadline_s - now_s) * 1000), 0)
        item = self._page.leases.add(ID=lease.id, TTL=lease.ttl_s, remaining_ms=left_ms, key_count=len(lease.keys))
        self._shown.append(lease)
        for key in nsmallest(self._keys_limit, lease.keys):
            self._room_bytes -= len(key)
            if self._room_bytes < 0:
                break
            item.keys.append(key)

    def page(self, header: rpc_pb2.ResponseHeader) -> leases_pb2.LeaseListResponse:
        """The page. Leases that ended while it was made are left out."""
        page = self._page
        for place in reversed([place for place, lease in enumerate(self._shown) if lease.ended]):
            del page.leases[place]
        page.header.CopyFrom(header)
        page.next_page_token = _TOKEN.pack(self._order, *self._last) if self._more else b""
        page.lease_count = len(self._leases)
        return page
