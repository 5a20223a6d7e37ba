# SPDX-License-Identifier: Apache-2.0
"""A node's decisions, one by one. All of them together: tests/simulation."""

from lessor.cluster.node import HEARD_S, TELL_URLS_S, Append, Apply, Durable, Effect, Lead, Node, Read, StepDown, Stop
from lessor.cluster.standing import Standing
from lessor.cluster.tenure import CLAIM_FOLLOWS_S, Timing
from lessor.durable import shared_record
from lessor.durable.engine import Leader
from lessor.durable.record import CHAIN_BYTES, Changes
from lessor.durable.shared_log import Found
from lessor.durable.shared_record import BATCH, BEAT, CLAIM, NONCE_BYTES, RELEASE, Entry

NONCE, ANOTHERS = b"n" * NONCE_BYTES, b"a" * NONCE_BYTES


class Log:
    """Records of another node, each behind the last."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @property
    def records(self) -> list[bytes]:
        return [entry.data for entry in self.entries]

    def add(self, kind: int, epoch: int = 1, *, subject: int = 0, texts: tuple[str, ...] = ()) -> Entry:
        chain = self.entries[-1].chain if self.entries else bytes(CHAIN_BYTES)
        number = len(self.entries) + 1
        rows = Changes(number, float(number))
        entry = shared_record.encode(kind, number, epoch, chain, 2, ANOTHERS, rows, subject=subject, texts=texts)
        self.entries.append(entry)
        return entry


class Driver:
    """Carries out nothing, and keeps what it was told to do."""

    def __init__(self, urls: tuple[str, ...] = ()) -> None:
        self.node = Node(1, NONCE, Timing(), Standing(), urls)
        self.log = Log()
        self.now_s = 100.0

    def take(self, kind: type[Effect] | None = None) -> list[Effect]:
        effects = self.node.take_effects()
        return effects if kind is None else [effect for effect in effects if isinstance(effect, kind)]

    def read(self, upto: int | None = None) -> list[Effect]:
        """Lets the node read, and answers with the log's records up to a position. Returns what follows."""
        self.now_s += 0.25
        self.node.tick(self.now_s)
        (read,) = self.take(Read)
        assert isinstance(read, Read)
        records = self.log.records[:upto]
        self.node.read_ok(read.ticket, Found(records[read.after :], len(records)), self.now_s)
        return self.take()

    def wait_for_claim(self) -> Append:
        for _ in range(20):
            self.now_s += 0.25
            self.node.tick(self.now_s)
            for effect in self.take():
                if isinstance(effect, Append):
                    return effect
                assert isinstance(effect, Read)
                self.node.read_ok(effect.ticket, Found([], len(self.log.entries)), self.now_s)
                assert self.take() == []
        raise AssertionError("no claim")

    def lead(self) -> None:
        append = self.wait_for_claim()
        self.node.append_ok(append.ticket, self.now_s)
        assert any(isinstance(effect, Lead) for effect in self.take())

    def submit(self, kind: int = BATCH) -> Append:
        self.node.submit(kind, Changes(self.node.standing.batch + 1, 50.0), self.now_s)
        (append,) = self.take(Append)
        assert isinstance(append, Append)
        return append


def test_an_empty_log_is_claimed_after_a_silence() -> None:
    driver = Driver()
    append = driver.wait_for_claim()
    assert (append.expect, driver.now_s) == (0, 101.75)
    claim = shared_record.decode(append.data)
    assert claim is not None
    assert (claim.kind, claim.epoch, claim.node, claim.nonce) == (CLAIM, 1, 1, NONCE)
    driver.node.append_ok(append.ticket, driver.now_s)
    (lead,) = driver.take()
    assert isinstance(lead, Lead)
    assert driver.node.free


def test_a_record_that_was_read_waits_for_the_next_one() -> None:
    driver = Driver()
    first, second = driver.log.add(CLAIM), driver.log.add(BATCH)
    (apply,) = driver.read()
    assert isinstance(apply, Apply)
    assert (apply.entry.number, driver.node.applied, driver.node.standing.number) == (1, 1, 2)
    driver.log.add(BEAT)
    (apply,) = driver.read()
    assert isinstance(apply, Apply)
    assert (apply.entry.data, driver.node.applied) == (second.data, 2)
    assert first.number == 1


def test_a_record_that_its_writer_shows_is_applied_at_once() -> None:
    driver = Driver()
    driver.node.shown(driver.log.add(CLAIM).data, driver.now_s)
    assert len(driver.take(Apply)) == 1
    entry = driver.log.add(BATCH)
    driver.read()
    assert driver.node.applied == 1
    driver.node.shown(entry.data, driver.now_s)  # it was read before
    assert len(driver.take(Apply)) == 1
    driver.node.shown(entry.data, driver.now_s)
    assert driver.take() == []


def test_a_gap_is_read() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(BATCH)
    driver.node.shown(driver.log.add(BATCH).data, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    assert read.after == 0


def test_a_claim_behind_a_record_that_waits_applies_it_first() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(BATCH)
    driver.read()
    append = driver.wait_for_claim()
    assert append.expect == 2
    driver.node.append_ok(append.ticket, driver.now_s)
    apply, lead = driver.take()
    assert isinstance(apply, Apply)
    assert isinstance(lead, Lead)
    assert (apply.entry.number, lead.entry.epoch, lead.clock_s, lead.clean) == (2, 2, 2.0, False)


def test_a_claim_behind_a_release_comes_at_once_and_is_clean() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(RELEASE, subject=1)
    driver.read()
    driver.node.tick(driver.now_s)
    (append,) = driver.take()
    assert isinstance(append, Append)
    driver.node.append_ok(append.ticket, driver.now_s)
    lead = driver.take()[-1]
    assert isinstance(lead, Lead)
    assert lead.clean


def test_a_claim_that_was_taken_drops_no_connection() -> None:
    driver = Driver()
    append = driver.wait_for_claim()
    driver.log.add(CLAIM)
    driver.node.append_refused(append.ticket, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_ok(read.ticket, Found(driver.log.records, 1), driver.now_s)
    assert driver.take() == []  # the claim waits to be confirmed
    assert not driver.node.leads


def test_a_batch_is_durable_when_it_has_landed() -> None:
    driver = Driver()
    driver.lead()
    append = driver.submit()
    assert not driver.node.free
    driver.node.append_ok(append.ticket, driver.now_s)
    (durable,) = driver.take()
    assert isinstance(durable, Durable)
    assert (durable.entry.number, driver.node.applied) == (2, 2)


def test_an_unknown_batch_is_looked_for_and_tried_again_with_the_same_bytes() -> None:
    driver = Driver()
    driver.lead()
    before = driver.node.standing
    claim = before.chain
    append = driver.submit()
    driver.node.append_unknown(append.ticket, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_failed(read.ticket, driver.now_s)
    assert driver.take() == []
    driver.node.tick(driver.now_s + 0.1)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_ok(read.ticket, Found([b"the claim" + claim], 1), driver.now_s)
    (again,) = driver.take()
    assert isinstance(again, Append)
    assert (again.data, again.expect) == (append.data, 1)
    driver.node.append_ok(append.ticket, driver.now_s)  # the answer to the first try, late
    assert driver.take() == []
    driver.node.append_ok(again.ticket, driver.now_s)
    assert isinstance(driver.take()[0], Durable)


def test_a_primary_in_whose_place_another_wrote_is_fenced() -> None:
    driver = Driver()
    driver.lead()
    standing = driver.node.standing
    append = driver.submit()
    rows = Changes(9, 9.0)
    claim = shared_record.encode(CLAIM, 2, 2, standing.chain, 2, ANOTHERS, rows)
    driver.node.shown(claim.data, driver.now_s)
    down, apply = driver.take()
    assert down == StepDown(released=False)
    assert isinstance(apply, Apply)
    driver.node.append_ok(append.ticket, driver.now_s)  # whatever the engine says now
    assert driver.take() == []
    assert not driver.node.leads


def test_a_release_ends_a_tenure_in_order() -> None:
    driver = Driver()
    driver.lead()
    append = driver.submit(RELEASE)
    assert not driver.node.tenure.valid(driver.now_s)
    driver.node.append_ok(append.ticket, driver.now_s)
    durable, down = driver.take()
    assert isinstance(durable, Durable)
    assert down == StepDown(released=True)
    assert driver.node.leader is None


def test_who_has_released_follows_and_leads_again() -> None:
    driver = Driver()
    driver.lead()
    before = driver.submit(RELEASE)
    driver.node.append_ok(before.ticket, driver.now_s)
    driver.take()
    standing = driver.node.standing
    claim = shared_record.encode(
        CLAIM, standing.number + 1, standing.epoch + 1, standing.chain, 2, ANOTHERS, Changes(standing.batch, 50.0),
        texts=("http://a",),
    )  # fmt: skip
    driver.node.shown(claim.data, driver.now_s)
    assert len(driver.take(Apply)) == 1
    assert driver.node.leader == Leader(2, ("http://a",), ANOTHERS, 2)
    release = shared_record.encode(
        RELEASE, standing.number + 1, 2, standing.chain, 2, ANOTHERS, Changes(standing.batch + 1, 51.0), subject=1
    )
    driver.node.shown(release.data, driver.now_s)
    driver.take()
    driver.node.tick(driver.now_s)
    (append,) = driver.take(Append)
    assert isinstance(append, Append)
    driver.node.append_ok(append.ticket, driver.now_s)
    (lead,) = driver.take(Lead)
    assert isinstance(lead, Lead)
    assert (lead.entry.epoch, lead.clock_s, lead.clean) == (3, 51.0, True)
    assert driver.node.free


def test_an_engine_that_does_not_answer_is_left_alone_while_the_primary_is_heard() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.read()

    def reads(seconds: float, told: bool) -> int:
        found = 0
        for _ in range(round(seconds / 0.25)):
            driver.now_s += 0.25
            if told:
                driver.node.told(1, 1, driver.now_s)
            driver.node.tick(driver.now_s)
            for read in driver.take(Read):
                assert isinstance(read, Read)
                found += 1
                driver.now_s += 1.0  # for so long it is waited for
                if told:
                    driver.node.told(1, 1, driver.now_s)
                driver.node.read_failed(read.ticket, driver.now_s)
        return found

    assert reads(20.0, told=True) <= 3
    driver.now_s += HEARD_S
    assert reads(2.0, told=False) >= 6  # the primary is silent too: whether the engine answers is all that counts


def test_behind_a_release_each_look_reads_for_a_moment() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(RELEASE, subject=3)
    driver.read()
    since_s, read_s = driver.now_s, []
    for _ in range(100):
        driver.now_s += 0.01
        driver.node.tick(driver.now_s)
        for read in driver.take(Read):
            assert isinstance(read, Read)
            read_s.append(driver.now_s - since_s)
            driver.node.read_ok(read.ticket, Found([], 2), driver.now_s)
    soon_s = [at_s for at_s in read_s if at_s < CLAIM_FOLLOWS_S]
    assert len(soon_s) > 25
    assert len(read_s) - len(soon_s) <= (1.0 - CLAIM_FOLLOWS_S) / Timing().beat_s + 1


def test_a_log_that_has_lost_records_stops_the_node() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(BATCH)
    driver.read()
    (stop,) = driver.read(upto=1)
    assert isinstance(stop, Stop)
    assert "ends at record 1" in stop.text
    driver.node.tick(driver.now_s + 100.0)
    assert driver.take() == []


def test_a_record_that_was_shown_while_a_read_was_under_way_is_no_loss() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.node.tick(driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.shown(driver.log.entries[0].data, driver.now_s)
    driver.node.read_ok(read.ticket, Found([], 0), driver.now_s)  # it was carried out before
    assert not driver.node.stopped


def test_a_log_without_a_record_that_its_writer_says_to_have_landed_stops_the_node() -> None:
    """The node stood still while it came, and the engine has lost it since: it must not lead what is left."""
    driver = Driver()
    for kind in (CLAIM, BATCH):
        driver.log.add(kind)
    driver.read()
    driver.node.told(1, 4, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_ok(read.ticket, Found([], 2), driver.now_s)
    (stop,) = driver.take()
    assert isinstance(stop, Stop)
    assert stop.text.startswith("the log ends at record 2, and this node knows record 4")
    driver.now_s += 10
    driver.node.tick(driver.now_s)
    assert driver.take() == []


def test_a_record_that_landed_while_a_read_was_under_way_is_no_loss() -> None:
    driver = Driver()
    for kind in (CLAIM, BATCH):
        driver.log.add(kind)
    driver.read()
    driver.now_s += 1
    driver.node.tick(driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.told(1, 3, driver.now_s)
    driver.node.read_ok(read.ticket, Found([], 2), driver.now_s)
    driver.log.add(BATCH)
    assert driver.take(Stop) == []
    driver.read()
    assert (driver.node.stopped, driver.node.applied) == ("", 3)


def test_another_history_stops_the_node() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.log.add(BATCH)
    driver.read()
    other = Log()
    other.add(CLAIM, epoch=2)
    other.add(BATCH, epoch=2)
    driver.node.shown(other.add(BEAT, epoch=2).data, driver.now_s)
    (stop,) = driver.take()
    assert isinstance(stop, Stop)
    assert "does not go on" in stop.text


def test_a_damaged_record_in_the_log_stops_the_node_and_one_from_another_node_does_not() -> None:
    driver = Driver()
    driver.node.shown(b"garbage", driver.now_s)
    assert driver.take() == []
    driver.node.tick(driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_ok(read.ticket, Found([b"garbage"], 1), driver.now_s)
    (stop,) = driver.take()
    assert isinstance(stop, Stop)


def test_a_record_that_its_writer_says_to_have_landed_is_applied_at_once() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.read()
    driver.log.add(BATCH)
    (apply,) = driver.read()  # of the claim: the batch waits
    assert isinstance(apply, Apply)
    driver.node.told(1, 2, driver.now_s)
    (apply,) = driver.take()
    assert isinstance(apply, Apply)
    assert apply.entry.number == 2
    driver.node.told(1, 2, driver.now_s)
    assert driver.take() == []


def test_a_record_that_is_not_there_yet_is_read_when_its_writer_says_that_it_has_landed() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.read()
    driver.log.add(BATCH)
    driver.node.told(1, 2, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
    driver.node.read_ok(read.ticket, Found(driver.log.records[read.after :], 2), driver.now_s)
    assert [effect.entry.number for effect in driver.take(Apply) if isinstance(effect, Apply)] == [1, 2]


def test_what_a_writer_said_in_an_older_epoch_is_not_taken_for_another_record() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.node.told(1, 2, driver.now_s)
    driver.take()
    driver.node.read_failed(1, driver.now_s)
    driver.log.add(CLAIM, epoch=2)
    (apply,) = driver.read()
    assert isinstance(apply, Apply)
    assert apply.entry.number == 1  # the claim of epoch 2 is not what was said


def test_records_say_who_leads_and_where() -> None:
    driver = Driver()
    assert driver.node.leader is None
    driver.log.add(CLAIM)
    driver.read()
    assert driver.node.leader == Leader(2, (), ANOTHERS, 1)
    driver.log.add(BEAT, texts=("http://two",))
    driver.read()
    driver.log.add(BATCH)
    driver.read()
    assert driver.node.leader == Leader(2, ("http://two",), ANOTHERS, 1)
    driver.log.add(RELEASE)
    driver.read()
    assert driver.node.leader is None


def test_a_primary_names_its_urls_once_a_second() -> None:
    driver = Driver(urls=("http://one",))
    driver.lead()
    assert driver.node.leader == Leader(1, ("http://one",), NONCE, 1)
    named = []
    for _ in range(10):
        append = driver.submit()
        entry = shared_record.decode(append.data)
        assert entry is not None
        named.append(tuple(entry.texts))
        driver.node.append_ok(append.ticket, driver.now_s)
        driver.take()
        driver.now_s += TELL_URLS_S / 4
    assert named.count(("http://one",)) == 2
    assert named[0] == ()  # the claim has just said it


def test_the_log_is_read_at_once_when_somebody_asks_for_it() -> None:
    driver = Driver()
    driver.log.add(CLAIM)
    driver.read()
    driver.node.tick(driver.now_s)
    assert driver.take() == []
    driver.node.told(0, 0, driver.now_s)
    (read,) = driver.take()
    assert isinstance(read, Read)
