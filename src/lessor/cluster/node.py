# SPDX-License-Identifier: Apache-2.0
"""What a node does with what it hears of the shared log: decisions only. Other code carries them out.

Laws
- A log that lacks a record is an alarm too: one that was taken in, or one of which its writer has said that it landed.
- A record is taken in once, in order, and only behind the one that it names (standing.py). Anything else is read from
  the log, or is an alarm: a history that does not go on from ours stops the node for good (`Stop`).
- At most one append is under way, and its outcome is settled before anything else is appended (`Placing`).
- A record of this node's own is `Durable`, or a `Lead`, only when it has landed. When another's stands in its place,
  the node is fenced: `StepDown` comes before the records of the other.
- A record of another's is applied when it is *confirmed*: its writer has shown it, or another record stands behind it.
  Until then its writer may not know that it has landed. A read there would not show it yet, so none may show it here.
- A claim is sent only behind the newest record taken in. When it has landed, that record is applied, and then `Lead`
  follows. So a primary begins with everything before its claim applied.
- Behind a SEAL, or an ARRIVAL, no node claims: it stops (`Stop`) when it would. `moved` says which of them is newest.
- A node that takes in an ARRIVAL as the next record lacks what the snapshot of that has: it stops too.
- An answer to an append or a read counts once, and only for the try that it belongs to: each has a ticket.

The order of effects is the order in which they have to be carried out. `take_effects` empties the list; look at it
after each call.

| heard | of | effects |
|---|---|---|
| a record shown by another node | the next one, or the one that waits | Apply |
| a record read | the next one | Apply of the one that waits; this one waits |
| either | one that comes too early | Read |
| | another history | Stop |
| append ok | own claim | Lead |
| | own batch or beat | Durable |
| | own release | Durable, StepDown |
| append refused, or of unknown outcome | | Read, and then as it turns out |
| another's record in the place of ours | a claim | Apply |
| | anything else | StepDown, Apply |
| the log ends before what we know | | Stop |
| tick | silence is over | Append of a claim |
| | a follower that read long ago, or that knows of a release of just now | Read |

Does not do: reading clocks, I/O, rows (the machine's), gates. `now_s` is of the node's own clock.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from lessor.cluster.standing import FORKED, GAP, NEXT, OLD, Standing
from lessor.cluster.tenure import CLAIMING, FOLLOWER, PRIMARY, Tenure, Timing
from lessor.durable import shared_record
from lessor.durable.engine import Leader
from lessor.durable.moved import ARRIVING, AWAY, Mark
from lessor.durable.record import Changes, UnknownFormatError
from lessor.durable.shared_log import LANDED, LOOK, LOST, TAKEN, TRY, Found, Placing
from lessor.durable.shared_record import ARRIVAL, BATCH, BEAT, CLAIM, GOES_ON, RELEASE, SEAL, Entry, Origin
from lessor.state.journal import Rows


class Append(NamedTuple):
    """Call the log's `append`; report with `append_ok`, `append_refused` or `append_unknown`."""

    ticket: int
    expect: int
    chain: bytes
    data: bytes


class Read(NamedTuple):
    """Call the log's `read`; report with `read_ok` or `read_failed`."""

    ticket: int
    after: int


class Apply(NamedTuple):
    """Bring another's record into the machine and the local tables."""

    entry: Entry


class Durable(NamedTuple):
    """The node's own record has landed: let go what waited for its batch, show it to the other nodes."""

    entry: Entry


class Lead(NamedTuple):
    """The node is primary from here on: promote the machine, whose data clock goes on at `clock_s`; then serve."""

    entry: Entry
    clock_s: float
    clean: bool  # whether the record before the claim was a release
    goes_on: bool  # whether it was one of a node that has kept the connections of its clients


class StepDown(NamedTuple):
    """The node is primary no more. `released`: it has ended its tenure itself, and memory is what the log has.

    Otherwise drop all connections and what waits for them, and make memory anew from the records taken in: it is ahead.
    """

    released: bool


FORKED_LOG: Final = 0  # the log and this node do not have one history
MOVED: Final = 1  # nobody leads this log, now or ever
BEHIND: Final = 2  # a snapshot has what this node lacks


class Stop(NamedTuple):
    """Serve nothing any more. A person has to decide, but for what is `BEHIND`."""

    text: str
    why: int = FORKED_LOG


# For people. The copies are what is left of the lost records.
_KEEP: Final = (
    ": bring back the engine that has it. Keep the data directories: when the engine has lost records, docs/cluster.md "
    "says how to go on from one of them"
)

Effect = Append | Read | Apply | Durable | Lead | StepDown | Stop

NO_TICKET: Final = 0
# Of a read that failed: how many times as long the next one waits, while the primary is heard. And for how long it is.
RESTS: Final = 9
REST_S_MAX: Final = 10.0
HEARD_S: Final = 2.0
# Beside its claim, which others may never read, a primary names its URLs in a record this often.
TELL_URLS_S: Final = 1.0
_LETTING: Final = (CLAIM, BATCH, BEAT)  # records that let their node answer; they say for how long


class Node:
    """One process of a cluster, from its start to its end."""

    def __init__(
        self, node_id: int, nonce: bytes, timing: Timing, standing: Standing, urls: Sequence[str] = ()
    ) -> None:
        """`nonce`: NONCE_BYTES, drawn anew by each process. `standing`: what the local tables hold already."""
        self.node_id = node_id
        self.nonce = nonce
        self.standing = standing
        self.tenure = Tenure(timing)
        self.stopped = ""  # why, once it has
        self.applied = standing.number  # of the records taken in, the newest that is applied
        self.leader: Leader | None = None  # who leads, perhaps this node; None: nobody, or it is not known yet
        self.moved: Mark | None = None  # what the newest record says of a move
        self.claims = True  # False: it follows only, and may seal
        self._urls = tuple(urls)
        self._told_s = float("-inf")  # when a record named them last
        self._lease_ms = math.ceil(timing.lease_s * 1e3)
        self._effects: list[Effect] = []
        self._waits: Entry | None = None  # the newest record taken in, while it is not confirmed
        self._tickets = NO_TICKET
        self._placing: Placing | None = None
        self._placed: Entry | None = None  # what `_placing` is about
        self._append_ticket = NO_TICKET  # of the append whose answer counts
        self._read_ticket = NO_TICKET
        self._read_at = 0  # of the records that were known to be in the log when that read was asked for, the newest
        self._read_s = float("-inf")
        self._read_again = False  # there is more to read
        self._rests_until_s = float("-inf")
        self._heard_s = float("-inf")  # when the primary has said something last
        self._told = (0, 0)  # epoch and number of a record that its writer says to have landed
        self._told_number = 0  # of such records in any epoch, the newest
        # The newest record that we know is looked at once more: it says how long its node may answer, or that it has
        # released, and that the log still has it.
        self._looks_back = standing.number > 0

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this node is the primary, as far as it knows; `tenure.valid` says whether it may say so."""
        return self.tenure.state == PRIMARY and not self.stopped

    def awaits_claim(self, now_s: float) -> bool:
        """Whether the newest record is a release of just now, so that the next one is near: look again soon."""
        return self.standing.released and self.tenure.awaits_claim(now_s)

    @property
    def free(self) -> bool:
        """Whether a primary may submit a record."""
        return self.leads and self._placing is None

    # --- time -----------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """To be called at least every beat_s, and after an unanswered append or read: not at once, but soon."""
        if self.stopped:
            return
        placing = self._placing
        if placing is not None:
            if self._append_ticket == NO_TICKET and self._read_ticket == NO_TICKET:
                self._go_on(placing, now_s)
        elif self.tenure.state == FOLLOWER and self._read_ticket == NO_TICKET:
            if self.claims and self.tenure.may_claim(now_s):
                self._claim(now_s)
            elif self._rests(now_s):
                return
            elif self._read_again or now_s - self._read_s >= self.tenure.timing.beat_s or self.awaits_claim(now_s):
                self._read(self.standing.number - self._looks_back, now_s)

    def _rests(self, now_s: float) -> bool:
        """Whether to leave an engine alone that has not answered, while the primary shows what it appends.

        Who waits for the engine takes in nothing meanwhile, and this node has clients that wait for their writes.
        """
        return now_s < self._rests_until_s and now_s - self._heard_s < HEARD_S

    # --- a primary writes -----------------------------------------------------------------------------------------

    def submit(
        self,
        kind: int,
        rows: Rows,
        now_s: float,
        origins: Sequence[Origin] = (),
        subject: int = 0,
        *,
        goes_on: bool = False,
    ) -> None:
        """Begins to append a record; `free` must be true. `goes_on`: of a release, whether this node keeps its clients.

        A beat has no rows. Its data clock is the present one only if no row waits to be saved, otherwise the saved one:
        decision 0004 has the reason.
        """
        assert self.free, "one record at a time, and only a primary's"
        if kind == RELEASE:
            self.tenure.releasing()
            self.leader = None
        elif kind in _LETTING:
            subject = self._lease_ms
        texts: tuple[str, ...] = (GOES_ON,) if goes_on else ()
        if kind in _LETTING and now_s - self._told_s >= TELL_URLS_S:
            texts, self._told_s = self._urls, now_s
        self._place(self._encode(kind, self.standing.epoch, rows, subject, texts, origins), now_s)

    def beat_due(self, now_s: float, turn_ended_s: float) -> bool:
        return self.free and self.tenure.beat_due(now_s, turn_ended_s)

    def confirm_newest(self) -> None:
        """Has the newest record applied although nobody has confirmed it: for who seals directly behind it."""
        self._confirm()

    def seal(self, mark: Mark, now_s: float) -> None:
        """Begins to append a seal, as if it were a claim: `tenure.may_claim` must hold. Once `idle`, see `moved`."""
        standing = self.standing
        self.tenure.claiming()
        rows = Changes(standing.batch, standing.clock_s)
        rows.clean = standing.released
        self._place(self._encode(SEAL, standing.epoch + 1, rows, 0, (mark.move, mark.place), ()), now_s)

    @property
    def idle(self) -> bool:
        """Whether no record is in hand."""
        return self._placing is None

    def _claim(self, now_s: float) -> None:
        if self.moved is not None:
            self._stop(self.moved.refusal, MOVED)
            return
        standing = self.standing
        self.tenure.claiming()
        rows = Changes(standing.batch, standing.clock_s)
        self._told_s = now_s
        self._place(self._encode(CLAIM, standing.epoch + 1, rows, self._lease_ms, self._urls, ()), now_s)

    def _encode(
        self, kind: int, epoch: int, rows: Rows, subject: int, texts: Sequence[str], origins: Sequence[Origin]
    ) -> Entry:
        at = self.standing
        return shared_record.encode(
            kind, at.number + 1, epoch, at.chain, self.node_id, self.nonce, rows,
            subject=subject, texts=texts, origins=origins,
        )  # fmt: skip

    def _place(self, entry: Entry, now_s: float) -> None:
        self._placed = entry
        self._placing = Placing(self.standing.number, self.standing.chain, entry.data)
        self._go_on(self._placing, now_s)

    # --- the way of the record in hand ----------------------------------------------------------------------------

    def append_ok(self, ticket: int, now_s: float) -> None:
        placing = self._of_append(ticket)
        if placing is not None:
            placing.accepted()
            self._go_on(placing, now_s)

    def append_refused(self, ticket: int, now_s: float) -> None:
        placing = self._of_append(ticket)
        if placing is not None:
            placing.refused()
            self._go_on(placing, now_s)

    def append_unknown(self, ticket: int, now_s: float) -> None:
        placing = self._of_append(ticket)
        if placing is not None:
            placing.unknown()
            self._go_on(placing, now_s)

    def _of_append(self, ticket: int) -> Placing | None:
        if self.stopped or ticket != self._append_ticket:
            return None
        self._append_ticket = NO_TICKET
        return self._placing

    def _go_on(self, placing: Placing, now_s: float, *, confirmed: bool = False) -> None:
        if placing.next == TRY:
            placing.trying(now_s)
            self._append_ticket = self._ticket()
            self._effects.append(Append(self._append_ticket, placing.expect, placing.chain, placing.data))
        elif placing.next == LOOK:
            placing.looking(now_s)
            self._read(placing.look_after, now_s)
        elif placing.next == LANDED:
            self._landed(placing, now_s)
        elif placing.next == TAKEN:
            self._taken(placing.others, now_s, confirmed=confirmed)
        else:
            assert placing.next == LOST
            self._stop(f"the log has lost record {placing.expect}, which this node knows{_KEEP}")

    def _landed(self, placing: Placing, now_s: float) -> None:
        entry = self._placed
        assert entry is not None
        self._forget_placing()
        self._confirm()
        released = self.standing.released
        # Another node than the named one claims late, and perhaps because that one was lost with its clients.
        goes_on = self.standing.goes_on and self.standing.successor in (0, self.node_id)
        self.standing.take(entry)
        self.applied = entry.number
        self.tenure.landed(placing.since_s, now_s)
        if entry.kind == CLAIM:
            self.leader = Leader(self.node_id, self._urls, self.nonce, self.standing.epoch)
            self._effects.append(Lead(entry, entry.record.rows.clock_s, released, goes_on))
        else:
            self._effects.append(Durable(entry))
        if entry.kind == RELEASE:
            self._effects.append(StepDown(released=True))
        elif entry.kind == SEAL:
            self.moved = _mark_of(entry)

    def _taken(self, others: Sequence[bytes], now_s: float, *, confirmed: bool = False) -> None:
        self._forget_placing()
        fenced = self.tenure.state != CLAIMING
        self.tenure.taken(now_s)
        if fenced:
            first = self._decoded(others[0])
            mark = None if first is None else _mark_of(first)
            if mark is not None:
                self._stop(mark.refusal, MOVED)
            if self.stopped:
                return
            self._effects.append(StepDown(released=False))
        self._take_all(others, now_s, confirmed=confirmed)

    def _forget_placing(self) -> None:
        self._placing = self._placed = None
        self._append_ticket = self._read_ticket = NO_TICKET

    # --- records of others ----------------------------------------------------------------------------------------

    def _read(self, after: int, now_s: float) -> None:
        self._read_ticket = self._ticket()
        self._read_at = max(self.standing.number, self._told_number)
        self._read_s = now_s
        self._read_again = False
        self._effects.append(Read(self._read_ticket, after))

    def read_ok(self, ticket: int, found: Found, now_s: float) -> None:
        if self.stopped or ticket != self._read_ticket:
            return
        self._read_ticket = NO_TICKET
        self.tenure.answered(now_s)
        placing = self._placing
        if placing is not None:
            placing.found(found)
            self._go_on(placing, now_s)
        elif found.last < self._read_at:
            # Not what is known now: another node may have shown us, or told us of, records since this read began.
            self._stop(f"the log ends at record {found.last}, and this node knows record {self._read_at}{_KEEP}")
        else:
            self._take_all(found.records, now_s)
            self._looks_back = False
            if found.last > self.standing.number and not self.stopped:
                self._read_more(now_s)

    def read_failed(self, ticket: int, now_s: float) -> None:
        if ticket == self._read_ticket:
            self._read_ticket = NO_TICKET
            self._rests_until_s = now_s + min(RESTS * (now_s - self._read_s), REST_S_MAX)
            self.tenure.unanswered()

    def shown(self, data: bytes, now_s: float) -> None:
        """Another node shows a record that has landed."""
        if self.stopped:
            return
        try:
            entry = shared_record.decode(data)
        except UnknownFormatError:
            return  # the log has it too, if it is one
        if entry is None:
            return
        placing = self._placing
        if placing is not None:
            # A later one says the same of ours as the one in its place, but not what that is: the append will tell.
            if entry.number == placing.expect + 1:
                placing.known(data)
                self._go_on(placing, now_s, confirmed=True)
        elif self.tenure.state == PRIMARY:
            if entry.number > self.standing.number:
                self._taken((data,), now_s, confirmed=True)
        else:
            self._take_entry(entry, now_s, confirmed=True)

    def told(self, epoch: int, number: int, now_s: float) -> None:
        """The writer of a record says that it has landed, and so all before it. It is read from the log at once.

        Number 0: nothing is said, and the log is read at once.
        """
        if number:
            self._heard_s = now_s
        self._told = max(self._told, (epoch, number))
        self._told_number = max(self._told_number, number)
        if self.stopped or self._placing is not None or self.tenure.state != FOLLOWER:
            return
        if number > self.standing.number or not number:
            self._read_more(now_s)
        elif self._waits is not None and self._is_told(self._waits):
            self._confirm()

    def _is_told(self, entry: Entry) -> bool:
        epoch, number = self._told
        return entry.epoch == epoch and entry.number <= number

    def _take_all(self, records: Sequence[bytes], now_s: float, *, confirmed: bool = False) -> None:
        for data in records:
            entry = self._decoded(data)
            if entry is not None:
                self._take_entry(entry, now_s, confirmed=confirmed)
            if self.stopped:
                return

    def _decoded(self, data: bytes) -> Entry | None:
        try:
            entry = shared_record.decode(data)
        except UnknownFormatError as error:
            self._stop(str(error))
            return None
        if entry is None:
            self._stop("the log has a damaged record")
        return entry

    def _take_entry(self, entry: Entry, now_s: float, *, confirmed: bool) -> None:
        standing = self.standing
        judged = standing.judge(entry)
        if judged == NEXT and entry.kind == ARRIVAL:
            self._stop("the copy is older than a move of data to this log", BEHIND)
        elif judged == NEXT:
            self._confirm()
            standing.take(entry)
            self.tenure.saw(now_s)
            self._learn(entry, now_s)
            self._waits = entry
            if confirmed or self._is_told(entry):
                self._confirm()
        elif judged == OLD:
            if confirmed and entry.number == standing.number:
                self._confirm()
            if self._looks_back and entry.number == standing.number:
                self._learn(entry, now_s)
        elif judged == GAP:
            self._read_more(now_s)
        elif judged == FORKED:
            self._stop(
                f"record {entry.number} does not go on from record {standing.number} as this node knows it{_KEEP}"
            )

    def _learn(self, entry: Entry, now_s: float) -> None:
        """What the newest record says of when to claim."""
        self.moved = _mark_of(entry)
        if self.moved is not None:
            self.leader = None
            self.tenure.saw_release(now_s, True)  # it finds at once that it may not claim
        elif entry.kind == RELEASE:
            self.leader = None
            self.tenure.saw_release(now_s, entry.subject in (0, self.node_id))
        elif entry.kind in _LETTING:
            self.tenure.others_lease_s = entry.subject / 1e3
            if entry.texts or entry.kind == CLAIM or self.leader is None:
                self.leader = Leader(entry.node, tuple(entry.texts), entry.nonce, entry.epoch)

    def _confirm(self) -> None:
        """The record that waits, if one does, is known to its writer."""
        entry, self._waits = self._waits, None
        if entry is not None:
            self.applied = entry.number
            self._effects.append(Apply(entry))

    def _read_more(self, now_s: float) -> None:
        if self._read_ticket == NO_TICKET:
            self._read(self.standing.number - self._looks_back, now_s)
        else:
            self._read_again = True

    def _stop(self, text: str, why: int = FORKED_LOG) -> None:
        self.stopped = text
        self.tenure.taken(0.0)
        self._effects.append(Stop(text, why))

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets


def _mark_of(entry: Entry) -> Mark | None:
    if entry.kind not in (SEAL, ARRIVAL) or len(entry.texts) != 2:
        return None
    return Mark(AWAY if entry.kind == SEAL else ARRIVING, *entry.texts)
