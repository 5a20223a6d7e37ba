# SPDX-License-Identifier: Apache-2.0
"""HashKV at each revision around compactions - Lessor and a real etcd.

The numbers themselves differ, so what is compared is which of them are the same: each gets the letter of its turn.
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, Subject, running, until

COMPACTED = Failure(11, "etcdserver: mvcc: required revision has been compacted")
FUTURE = Failure(11, "etcdserver: mvcc: required revision is a future revision")
KEPT = 10  # compactions whose numbers etcd keeps

Seen = str | tuple[str, int, int]


class Hashes:
    """What HashKV answers, with a letter for each number."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._letters: dict[int, str] = {}

    def at(self, revision: int) -> Seen:
        """(letter, compact_revision, hash_revision), or "compacted" or "future"."""
        reply: Any = self.subject.call(rpc.HashKVRequest(revision=revision))
        if isinstance(reply, Failure):
            return {COMPACTED: "compacted", FUTURE: "future"}[reply]
        letter = self._letters.setdefault(reply.hash, chr(ord("A") + len(self._letters)))
        return letter, reply.compact_revision, reply.hash_revision

    def all(self) -> list[Seen]:
        """At the newest data and at each revision up to one in the future."""
        return [self.at(revision) for revision in range(self.subject.revision + 2)]

    def compact(self, revision: int) -> None:
        """Compacts, and waits until etcd has the numbers of that."""
        before = self.at(revision)
        self.subject.do(rpc.CompactionRequest(revision=revision, physical=True))
        until(lambda: self.at(revision) == before)


@pytest.fixture(params=RUNNERS)
def hashes(request: pytest.FixtureRequest) -> Iterator[Hashes]:
    with running(request.param) as subject:
        if not subject.like(3, 6):
            pytest.skip("3.5 keeps no hashes of compactions, and says no hash_revision")
        yield Hashes(subject)


def write_some(subject: Subject) -> None:
    subject.put(b"a", b"1")  # 2
    subject.put(b"a", b"2")  # 3
    subject.put(b"b", b"1")  # 4
    subject.delete(b"a")  # 5
    subject.put(b"a", b"3")  # 6
    subject.put(b"c", b"1")  # 7


def test_a_compaction_leaves_the_hash_at_its_revision(hashes: Hashes) -> None:
    write_some(hashes.subject)
    first: list[Seen] = [(letter, -1, revision) for letter, revision in zip("BCDEFGA", range(1, 8), strict=True)]
    assert hashes.all() == [("A", -1, 7), *first, "future"]
    hashes.compact(4)
    fourth = ("E", -1, 4)
    assert hashes.all() == [
        ("H", 4, 7),
        *["compacted"] * 3,
        fourth,
        ("I", 4, 5),
        ("J", 4, 6),
        ("H", 4, 7),
        "future",
    ]
    hashes.compact(5)
    fifth = ("I", 4, 5)
    newest = ("K", 5, 7)
    assert hashes.all() == [newest, *["compacted"] * 3, fourth, fifth, ("L", 5, 6), newest, "future"]
    hashes.compact(7)
    assert hashes.all() == [
        ("K", 7, 7),
        *["compacted"] * 3,
        fourth,
        fifth,
        "compacted",
        newest,
        "future",
    ]


def test_a_restart_forgets_the_hashes_of_compactions(hashes: Hashes) -> None:
    write_some(hashes.subject)
    hashes.compact(4)
    hashes.compact(6)
    assert hashes.at(4) == ("A", -1, 4)
    assert hashes.at(6) == ("B", 4, 6)
    hashes.subject.server.request_stop()
    hashes.subject.server.wait()
    hashes.subject.server.start_again()
    until(lambda: not isinstance(hashes.subject.call(rpc.RangeRequest(key=b"a")), Failure))
    assert hashes.at(4) == "compacted"
    assert hashes.at(6)[1:] == (6, 6)
    hashes.compact(7)
    assert hashes.at(7)[1:] == (6, 7)
    assert hashes.at(6) == "compacted"


def test_the_last_compactions_are_kept(hashes: Hashes) -> None:
    for count in range(KEPT + 4):
        hashes.subject.put(b"k", b"%d" % count)
    for revision in range(3, KEPT + 5):
        hashes.compact(revision)
    kept = range(KEPT + 5 - KEPT, KEPT + 5)
    assert [hashes.at(revision) for revision in range(1, kept[0])] == ["compacted"] * (kept[0] - 1)
    seen = [hashes.at(revision) for revision in kept]
    assert [each[1:] for each in seen] == [(revision - 1, revision) for revision in kept]
    assert len({each[0] for each in seen}) == KEPT


def test_a_lease_of_a_key_and_several_keys_of_one_revision_count(hashes: Hashes) -> None:
    subject = hashes.subject
    lease_id = subject.grant()
    subject.put(b"x", b"v", lease=lease_id)
    puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"v")) for key in (b"x", b"y", b"z")]
    subject.do(rpc.TxnRequest(success=puts))
    subject.delete(b"x", b"z")
    seen = hashes.all()
    hashes.compact(3)
    assert hashes.at(3) == seen[3]
    hashes.compact(4)
    assert hashes.at(4)[1:] == (3, 4)
    assert hashes.at(3) == seen[3]
    subject.revoke(lease_id)
    subject.delete(b"z")
    assert hashes.at(3) == seen[3]


def history(seed: int, subject: Subject) -> list[list[Seen]]:
    """Random writes and compactions; what HashKV answers at each revision after each compaction."""
    rng = random.Random(seed)
    hashes, seen, compacted = Hashes(subject), [], 1
    for _ in range(6):
        for _ in range(rng.randrange(1, 8)):
            key = rng.choice([b"a", b"b", b"c"])
            if rng.random() < 0.3:
                subject.delete(key)
            else:
                subject.put(key, rng.choice([b"1", b"2"]))
        seen.append(hashes.all())
        compacted = rng.randint(min(compacted + 1, subject.revision), subject.revision)
        if hashes.at(compacted) != "compacted" and compacted > 1:
            reply = subject.call(rpc.CompactionRequest(revision=compacted, physical=True))
            seen.append([str(reply) if isinstance(reply, Failure) else "done"])
            seen.append(hashes.all())
    return seen


@pytest.mark.etcd
@pytest.mark.parametrize("seed", range(3))
def test_random_histories(seed: int) -> None:
    with running("etcd") as etcd, running("in-process") as lessor:
        if not etcd.like(3, 6):
            pytest.skip("3.5 keeps no hashes of compactions")
        assert history(seed, lessor) == history(seed, etcd)
