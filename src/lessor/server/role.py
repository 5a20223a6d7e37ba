# SPDX-License-Identifier: Apache-2.0
"""Whether a server on a shared log leads or follows, and the ways from one to the other.

Laws
- A server follows what others write until the engine says that it leads. What waits here is carried out here then.
- It hands the lead over in this order. Calls are passed on from now on, and wait for the next leader; keepalive streams
  too. What was applied becomes durable and is sent, while this server still may. Then the release is
  written: exact deadlines, and who is to lead. Its followers are told. From then on this server follows.
- Nothing is forgotten on that way: what a leader has in memory when all of it is durable is what the log has. So
  connections, watches, observers and locks that wait go on. A leader that was taken over is ahead of the log instead,
  and a new Server takes its place (main.py).
- A release of unknown outcome is settled below `commit`. Calls wait meanwhile, as they do for any commit.

| from | event | next | what is done |
|---|---|---|---|
| follows | the engine leads | leads | `_lead` |
| leads | `hand_over` | leaving | calls are passed on, and wait |
| leaving | all is durable and sent | leaving | the release is written |
| leaving | the release has landed | follows | followers are told |
| leaving | the release was refused, or failed | over | `on_failure`, as after any commit |
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lessor.cluster.forwarding import FORWARD_ALLOWANCE_S
from lessor.durable.engine import Begun, Engine, EngineError, TwinError
from lessor.durable.shared_record import Origin
from lessor.server.loop.committer import Committer
from lessor.server.loop.core import Core
from lessor.server.options import TlsOptions
from lessor.server.services.table import Services
from lessor.state.journal import Batch, Rows
from lessor.state.machine import StateMachine
from lessor.state.replay import apply, promote

if TYPE_CHECKING:
    from lessor.server.following.follower import Follower

log = logging.getLogger("lessor")

# What is raised over rows that no Lessor has written: SQLite does not see damage within a row.
IMPOSSIBLE_ROWS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, MemoryError)


class NotAppliedError(EngineError):
    """Rows of another server that cannot be, here."""


class Role:
    """Of one server. Loop thread only."""

    def __init__(
        self,
        core: Core,
        engine: Engine,
        committer: Committer,
        services: Services,
        tls: TlsOptions,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`on_failure` is called when this server has to stop: memory is ahead of the log, or it has a twin."""
        self.follower: Follower | None = None  # while another server leads, or is to
        self._core = core
        self._engine = engine
        self._committer = committer
        self._services = services
        self._tls = tls
        self._on_failure = on_failure
        self._term = core.machine.identity.term  # in which the newest batch was committed
        self._leaving: asyncio.Future[None] | None = None
        self._successor = 0  # of the hand-over under way

    # --- to follow ---

    def stand_by(self) -> None:
        """Follows the server that leads, from the start."""
        self._term = 0  # the first one that is seen counts as a change
        self._begin_to_pass_on()
        self._committer.stand_by(self._follow, self._lead)

    def _begin_to_pass_on(self) -> None:
        # Not at the top: with the client behind it, it would make each start longer by a half.
        from lessor.server.following.follower import Follower

        engine = self._engine
        self.follower = Follower(
            self._core,
            lambda: engine.leader,
            self._told,
            lambda: engine.hears_log,
            engine.claim_s,
            self._tls,
            self._on_twin,
        )
        self._committer.on_looked = self.follower.on_looked

    def _on_twin(self, text: str) -> None:
        self._on_failure(
            TwinError(
                f"{text}: --data-dir {self._core.options.data_dir} is a copy of that server's. Start this one with an "
                "empty directory: it is made anew from the engine"
            )
        )

    def _told(self, epoch: int, record: int, records: Sequence[bytes] = ()) -> None:
        self._engine.told(epoch, record, records)
        self._committer.look_now()

    def _follow(self, rows: Rows, term: int, origins: Sequence[Origin]) -> None:
        machine = self._core.machine
        self._core.turn.follow(lambda: apply_rows(machine, rows, term), rows.number)
        dead = machine.journal.take_dead()  # of this record, and of those before it, as far as the turns have swept
        if dead:
            self._engine.name_dead(dead)
        if self.follower is not None:
            self.follower.applied(term, origins)
        if term != self._term:
            self._term = term
            self._core.metrics.leader_changes += 1

    # --- to lead ---

    def _lead(self, begun: Begun) -> None:
        core, follower = self._core, self.follower
        assert follower is not None
        promote_machine(core.machine, begun)
        self._term = begun.term
        core.metrics.leader_changes += 1
        core.metrics.claims += 1
        core.metrics.answering = self._engine.answering
        core.turn.lead(begun.clock_s, self._engine.answering)
        self.follower = None
        self._committer.on_looked = lambda: None
        follower.lead()

    # --- to hand over ---

    @property
    def can_hand_over(self) -> bool:
        """Whether this server leads, and another one follows it."""
        return self._leaving is not None or (self.follower is None and bool(self._core.followers))

    def hand_over(self, member_id: int = 0, *, goes_on: bool = True) -> "asyncio.Future[None]":
        """Lets the follower with that id lead; 0: the first one. Done when this server follows, or cannot.

        `goes_on`: whether its clients can stay. To be called while `can_hand_over`. A second call while the first is
        under way changes nothing, but that the clients cannot stay, if the release is not written yet.
        """
        if self._leaving is not None:
            if not goes_on:
                self._engine.name_successor(self._successor, goes_on=False)
        else:
            self._leaving = asyncio.get_running_loop().create_future()
            # Two that claim at one time take longer than one: so there is always a name.
            followers = self._core.followers.values()
            successor = member_id or next((member.member_id for member in followers), 0)
            self._successor = successor
            log.info("handing over the log", extra={"to": f"{successor:016x}"})
            self._engine.name_successor(successor, goes_on=goes_on)
            self._begin_to_pass_on()
            self._services.pass_on(self._core)
            self._core.turn.leave(self._begin_release)
        return self._leaving

    def _begin_release(self) -> None:
        self._core.run(self._release())

    async def _release(self) -> None:
        turn, machine = self._core.turn, self._core.machine
        try:
            now_s = turn.now_s()
            machine.checkpoint(now_s)
            batch = machine.journal.seal(now_s)
            await self._committer.run(lambda: self._engine.commit(batch))
            self._follow_on(batch)
        except Exception as error:
            self._on_failure(error)
        self.settle()

    def _follow_on(self, batch: Batch) -> None:
        core, end = self._core, self._engine.released
        assert end is not None, "the engine has released"
        self._term = core.machine.identity.term
        core.machine.stand_by()
        core.turn.follow_on(batch.number)
        for member in list(core.followers.values()):
            member.part(end)
        core.metrics.follow_on()
        self._committer.stand_by(self._follow, self._lead)
        log.info("following from now on", extra={"epoch": end.epoch, "record": end.record})

    def settle(self) -> None:
        """Nobody is to wait any more for the end of `hand_over`."""
        leaving, self._leaving = self._leaving, None
        if leaving is not None and not leaving.done():
            leaving.set_result(None)


def apply_rows(machine: StateMachine, rows: Rows, term: int) -> None:
    """Takes in what another server has committed in `term`. Raises EngineError for rows that do not apply."""
    try:
        if term != machine.identity.term:
            machine.lead(term)
        apply(machine, rows)
    except IMPOSSIBLE_ROWS as error:
        raise NotAppliedError(
            f"batch {rows.number} of another server does not apply here, {error!r}: run one version on all, and report "
            "this if you do"
        ) from error


def promote_machine(machine: StateMachine, begun: Begun) -> None:
    """The machine begins a term after batches of others."""
    promote(
        machine,
        begun.term,
        begun.clock_s,
        clean=begun.clean,
        passed_on_s=FORWARD_ALLOWANCE_S,
        goes_on=begun.goes_on,
    )
