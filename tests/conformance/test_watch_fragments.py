# SPDX-License-Identifier: Apache-2.0
"""History for watchers that asked for fragments: one response of up to 1,000 revisions, however large, in fragments."""

from typing import Any

from tests.conformance.subject import Subject, end_of
from tests.conformance.watch_peer import PUT, WatchPeer, seen

# What a server puts into a message: --max-request-bytes and the overhead that it allows for.
MESSAGE_BYTES_MAX = 1_572_864 + 524_288


def response(watch: WatchPeer) -> list[Any]:
    """The fragments of the next response."""
    fragments = [watch.read()]
    while fragments[-1].fragment:
        fragments.append(watch.read())
    return fragments


def events_of(fragments: list[Any]) -> list[tuple[int, bytes, int]]:
    return [event for each in fragments for event in seen(each.events)]


def test_ten_large_revisions_are_one_response(subject: Subject, prefix: bytes) -> None:
    value = b"x" * 716_800
    keys = [b"%s%d" % (prefix, number) for number in range(10)]
    puts = [(PUT, key, subject.put(key, value)) for key in keys]
    newest = subject.put(b"elsewhere")
    with WatchPeer(subject) as watch:
        watch.prefix(prefix, start_revision=puts[0][2], fragment=True)
        fragments = response(watch)
        later = subject.put(prefix + b"z")
        assert events_of(response(watch)) == [(PUT, prefix + b"z", later)]
    assert events_of(fragments) == puts
    assert len(fragments) >= 5
    assert all(each.ByteSize() < MESSAGE_BYTES_MAX for each in fragments)
    assert {each.header.revision for each in fragments} == {newest}
    assert {each.watch_id for each in fragments} == {0}
    subject.delete(prefix, end_of(prefix))


def test_a_response_has_a_thousand_revisions_at_most(subject: Subject, prefix: bytes) -> None:
    value = b"x" * 4_000
    puts = [(PUT, prefix, subject.put(prefix, value)) for _ in range(1_005)]
    with WatchPeer(subject) as watch:
        watch.create(prefix, start_revision=puts[0][2], fragment=True)
        first = response(watch)
        assert len(first) >= 2
        assert events_of(first) == puts[:1_000]
        assert events_of(response(watch)) == puts[1_000:]
    subject.delete(prefix)


def test_no_response_comes_between_two_fragments(subject: Subject, prefix: bytes) -> None:
    """Go's client puts the fragments of a stream together by their order alone."""
    value = b"x" * 716_800
    puts = [(PUT, prefix, subject.put(prefix, value)) for _ in range(8)]
    small = prefix + b"small"
    with WatchPeer(subject) as watch:
        watch.create(small)
        for number in range(3):
            watch.ask(prefix, start_revision=puts[0][2], fragment=True, watch_id=7 + number)
        smalls = [(PUT, small, subject.put(small)) for _ in range(20)]
        told: dict[int, list[tuple[int, bytes, int]]] = {0: [], 7: [], 8: [], 9: []}
        within = None
        while any(len(told[each]) < 8 for each in (7, 8, 9)) or len(told[0]) < 20 or within is not None:
            reply = watch.read()
            assert within in (None, reply.watch_id)
            within = reply.watch_id if reply.fragment else None
            told[reply.watch_id] += seen(reply.events)
    assert told == {0: smalls, 7: puts, 8: puts, 9: puts}
    subject.delete(prefix, end_of(prefix))
