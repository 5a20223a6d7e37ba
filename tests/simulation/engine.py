# SPDX-License-Identifier: Apache-2.0
"""The shared log in memory, with all that a real engine does to those who use it.

It keeps E1 to E3 of durable/shared_log.py. Beyond these it is as bad as can be: requests and answers take time,
overtake each other and are lost, so that an append lands and is reported as unknown, or lands long after it was
reported so. It goes away and comes back, with the requests that came meanwhile carried out or forgotten. `lose_tail`
breaks E2.

`on_landing(entry, data)` is called when a record lands.
"""

from collections.abc import Callable
from typing import Any, Protocol

from lessor.durable import shared_record
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import Found
from lessor.durable.shared_record import Entry
from tests.simulation.world import World

GIVE_UP_S = 0.4  # after which a process takes an append for unknown, a read for failed
READ_RECORDS_MAX = 40
OVERLOOKED_S = 0.7  # a shorter outage may be one slow answer to those who ask: link_s, by the slowest clock


class User(Protocol):
    """A process, as the engine sees it."""

    def hear(self, what: Callable[..., None], *args: Any) -> None: ...
    def appended(self, ticket: int, outcome: str) -> None: ...
    def was_read(self, ticket: int, found: Found | None) -> None: ...


class MemoryLog:
    def __init__(self, world: World, on_landing: Callable[[Entry], None], *, checks_chain: bool = True) -> None:
        """checks_chain False: an append is refused for its position only."""
        self._world = world
        self._on_landing = on_landing
        self._checks_chain = checks_chain
        self.records: list[bytes] = []
        self.up = True
        self.slow = 1.0  # how many times as long everything takes
        self.loss = 0.01  # of requests and of answers
        self.cut_out: dict[User, None] = {}  # whose requests do not arrive
        self.cut_back: dict[User, None] = {}  # whom no answer reaches
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._away_since_s = 0.0
        self.outage_ended_s = float("-inf")  # of the last one that nobody can have overlooked

    @property
    def chain(self) -> bytes:
        return self.records[-1][-CHAIN_BYTES:] if self.records else bytes(CHAIN_BYTES)

    # --- what processes call --------------------------------------------------------------------------------------

    def append(self, user: User, ticket: int, expect: int, chain: bytes, data: bytes) -> None:
        self._world.after(GIVE_UP_S, user.hear, user.appended, ticket, "unknown")
        self._request(user, self._append, user, ticket, expect, chain, data)

    def read(self, user: User, ticket: int, after: int) -> None:
        self._world.after(GIVE_UP_S, user.hear, user.was_read, ticket, None)
        self._request(user, self._read, user, ticket, after)

    # --- the way there and back -----------------------------------------------------------------------------------

    def _delay_s(self) -> float:
        chance = self._world.chance
        delay_s = chance.uniform(0.0003, 0.004) * self.slow
        return delay_s * chance.uniform(1.0, 300.0) if chance.random() < 0.01 else delay_s

    def _request(self, user: User, what: Callable[..., None], *args: Any) -> None:
        if user not in self.cut_out and not self._world.likely(self.loss):
            self._world.after(self._delay_s(), self._arrive, what, *args)

    def _arrive(self, what: Callable[..., None], *args: Any) -> None:
        if self.up:
            what(*args)
        elif self._world.likely(0.5):
            self._held.append((what, args))

    def _answer(self, user: User, what: Callable[..., None], *args: Any) -> None:
        if user not in self.cut_back and not self._world.likely(self.loss):
            self._world.after(self._delay_s(), user.hear, what, *args)

    # --- the log itself -------------------------------------------------------------------------------------------

    def _append(self, user: User, ticket: int, expect: int, chain: bytes, data: bytes) -> None:
        if expect != len(self.records) or (self._checks_chain and chain != self.chain):
            self._answer(user, user.appended, ticket, "refused")
            return
        entry = shared_record.decode(data)
        assert entry is not None
        self._on_landing(entry)
        self.records.append(data)
        outcome = "unknown" if self._world.likely(0.005) else "ok"
        self._answer(user, user.appended, ticket, outcome)

    def _read(self, user: User, ticket: int, after: int) -> None:
        found = Found(self.records[after : after + READ_RECORDS_MAX], len(self.records))
        self._answer(user, user.was_read, ticket, found)

    # --- harm -----------------------------------------------------------------------------------------------------

    def go_away(self) -> None:
        self.up = False
        self._away_since_s = self._world.now_s

    def come_back(self) -> None:
        if self.up:
            return
        self.up = True
        if self._world.now_s - self._away_since_s > OVERLOOKED_S:
            self.outage_ended_s = self._world.now_s
        held, self._held = self._held, []
        for what, args in held:
            self._world.after(self._world.chance.uniform(0.0, 0.5), self._arrive, what, *args)

    def lose_tail(self, count: int) -> list[bytes]:
        """Forgets the newest records, and what was under way; returns them."""
        self._held = []
        kept = max(len(self.records) - count, 0)
        lost, self.records = self.records[kept:], self.records[:kept]
        return lost
