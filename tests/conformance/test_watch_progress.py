# SPDX-License-Identifier: Apache-2.0
"""Watch: the progress of a stream, sent on request and from time to time, by Lessor and by a real etcd."""

import pytest

from tests.conformance.subject import Subject
from tests.conformance.watch_peer import PUT, WatchPeer, seen


@pytest.fixture
def watch(subject: Subject) -> WatchPeer:
    """A watch stream that is opened by the test's `with`."""
    return WatchPeer(subject)


def test_progress_is_told_when_asked_for(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        revision = subject.put(prefix + b"other")
        watch.ask_progress()
        reply = watch.read()
    assert (reply.watch_id, reply.header.revision, list(reply.events)) == (-1, revision, [])
    assert (reply.created, reply.canceled) == (False, False)


def test_progress_comes_after_the_events_it_speaks_of(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        for _ in range(20):
            revision = subject.put(prefix)
            watch.ask_progress()
            if not subject.like(3, 6):
                continue  # 3.5 lets progress overtake events (issue 15220 of etcd)
            assert seen(watch.read().events) == [(PUT, prefix, revision)]
            reply = watch.read()
            assert (reply.watch_id, reply.header.revision) == (-1, revision)


def test_without_a_watcher_no_progress_is_told(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.ask_progress()
        if not subject.like(3, 6):  # 3.5 answers always
            assert watch.read().watch_id == -1
        assert watch.create(prefix).watch_id == 0


def test_while_a_watcher_waits_for_the_future_no_progress_is_told(
    subject: Subject, watch: WatchPeer, prefix: bytes
) -> None:
    current = subject.put(prefix)
    with watch:
        watch.create(prefix)
        watch.create(prefix, start_revision=current + 5)
        watch.ask_progress()
        if not subject.like(3, 6):  # 3.5 answers always
            assert watch.read().watch_id == -1
        subject.put(prefix)
        assert watch.read().watch_id == 0


def test_a_watcher_of_the_next_revision_gets_progress(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    current = subject.put(prefix)
    with watch:
        watch.create(prefix, start_revision=current + 1)
        watch.ask_progress()
        # Clients that read and then watch begin like this. Nothing is missing up to now, so Lessor says that; etcd 3.6
        # compares with the start that was asked for and stays silent until the first change.
        if subject.is_lessor or not subject.like(3, 6):
            reply = watch.read()
            assert (reply.watch_id, reply.header.revision) == (-1, current)
        subject.put(prefix)
        assert watch.read().watch_id == 0


@pytest.mark.slow
def test_idle_watchers_that_ask_are_notified(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix, watch_id=4, progress_notify=True)
        watch.create(prefix, watch_id=5)
        revision = subject.put(prefix + b"other")
        reply = watch.read()
        if reply.header.revision < revision:  # the first one may have been under way before the put
            reply = watch.read()
    assert (reply.watch_id, reply.header.revision, list(reply.events)) == (4, revision, [])
    assert (reply.created, reply.canceled) == (False, False)


@pytest.mark.slow
def test_notifications_go_on(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix, progress_notify=True)
        assert [(watch.read().watch_id, len(watch.read().events)) for _ in range(2)] == [(0, 0)] * 2
