# SPDX-License-Identifier: Apache-2.0
"""Watch: the responses to a stream of watchers, by Lessor and by a real etcd.

Silence is never waited for: a test that expects it makes something happen afterwards that has to be sent, and sees that
this comes next.
"""

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import Subject, end_of
from tests.conformance.watch_peer import DELETE, PUT, WatchPeer, seen

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE = "mvcc: watcher range is empty"


@pytest.fixture
def watch(subject: Subject) -> WatchPeer:
    """A watch stream that is opened by the test's `with`."""
    return WatchPeer(subject)


# --- creation and ids -------------------------------------------------------------------------------------------------


def test_created_comes_first_with_the_current_revision(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    revision = subject.put(prefix)
    with watch:
        reply = watch.create(prefix)
    assert (reply.header.revision, reply.canceled, list(reply.events)) == (revision, False, [])
    header = subject.do(rpc.RangeRequest(key=prefix)).header
    assert reply.header == header


def test_created_comes_before_the_history(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    revision = subject.put(prefix)
    with watch:
        created = watch.create(prefix, start_revision=revision)
        assert not created.events
        assert seen(watch.events(1)) == [(PUT, prefix, revision)]


def test_ids_count_from_zero_on_each_stream(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch, WatchPeer(subject) as other:
        assert [watch.create(prefix).watch_id for _ in range(3)] == [0, 1, 2]
        assert other.create(prefix).watch_id == 0


@pytest.mark.parametrize("watch_id", [1, 77, -5, 2**63 - 1, -(2**63)])
def test_an_id_may_be_chosen(subject: Subject, watch: WatchPeer, prefix: bytes, watch_id: int) -> None:
    with watch:
        assert watch.create(prefix, watch_id=watch_id).watch_id == watch_id
        subject.put(prefix)
        assert watch.read().watch_id == watch_id


def test_ids_given_by_the_server_pass_over_chosen_ones(watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix, watch_id=1)
        watch.create(prefix, watch_id=2)
        assert [watch.create(prefix).watch_id for _ in range(2)] == [0, 3]


def test_a_duplicate_id_is_refused_and_the_stream_goes_on(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix, watch_id=7)
        refused = watch.create(prefix, watch_id=7)
        assert (refused.watch_id, refused.canceled, refused.cancel_reason) == (-1, True, DUPLICATE_ID)
        assert (refused.compact_revision, refused.header.revision) == (0, subject.revision)
        subject.put(prefix)
        assert watch.read().watch_id == 7


def test_ids_of_two_streams_do_not_meet(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch, WatchPeer(subject) as other:
        assert not watch.create(prefix, watch_id=7).canceled
        assert not other.create(prefix, watch_id=7).canceled


@pytest.mark.parametrize(("key", "range_end"), [(b"b", b"a"), (b"b", b"b"), (b"b\0", b"b")])
def test_an_empty_range_is_refused_and_the_stream_goes_on(watch: WatchPeer, key: bytes, range_end: bytes) -> None:
    with watch:
        refused = watch.create(key, range_end=range_end)
        assert (refused.watch_id, refused.canceled, refused.cancel_reason) == (-1, True, EMPTY_RANGE)
        assert watch.create(key).watch_id == 0


def test_an_empty_key_means_the_first_possible_key(subject: Subject, watch: WatchPeer) -> None:
    with watch:
        watch.create(b"")
        subject.put(b"\0\0")
        revision = subject.put(b"\0")
        assert seen(watch.events(1)) == [(PUT, b"\0", revision)]
        subject.delete(b"\0", b"\0\1")


def test_a_request_without_content_is_ignored(watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.stream.send(rpc.WatchRequest())
        assert watch.create(prefix).watch_id == 0


def test_creates_that_come_in_a_burst_are_answered_in_order(watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        for number in range(50):
            watch.ask(prefix + b"%d" % number)
        replies = [watch.read() for _ in range(50)]
    assert [(reply.created, reply.watch_id) for reply in replies] == [(True, number) for number in range(50)]


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_a_key_is_watched_alone(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"b")
        for name in (b"a", b"b\0", b"bb", b"c"):
            subject.put(prefix + name)
        revision = subject.put(prefix + b"b")
        assert seen(watch.events(1)) == [(PUT, prefix + b"b", revision)]


def test_a_range_has_its_first_key_and_not_its_end(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"b", range_end=prefix + b"d")
        names = [b"a", b"a\xff", b"b", b"b\0", b"c\xff", b"d", b"d\0", b"c"]
        revisions = {name: subject.put(prefix + name) for name in names}
        inside = [name for name in names if b"b" <= name < b"d"]
        assert seen(watch.events(len(inside))) == [(PUT, prefix + name, revisions[name]) for name in inside]


def test_an_end_of_one_zero_byte_means_all_following_keys(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"m", range_end=b"\0")
        subject.put(prefix + b"l")
        revisions = [subject.put(key) for key in (prefix + b"m", prefix + b"z", b"\xff\xff")]
        assert [event.kv.mod_revision for event in watch.events(3)] == revisions
    subject.delete(b"\xff\xff")


def test_zero_bytes_as_key_and_end_mean_every_key(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(b"\0", range_end=b"\0")
        revisions = [subject.put(key) for key in (b"\0", prefix, b"\xff")]
        assert [event.kv.mod_revision for event in watch.events(3)] == revisions
    for key in (b"\0", b"\xff"):
        subject.delete(key)


def test_a_prefix_of_0xff_is_watched(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"\xff", range_end=end_of(prefix))
        subject.put(prefix + b"\xfe")
        revision = subject.put(prefix + b"\xff\xff")
        assert watch.events(1)[0].kv.mod_revision == revision


# --- where a watch begins ---------------------------------------------------------------------------------------------


def test_without_a_start_only_later_changes_are_told(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix, b"before")
    with watch:
        watch.create(prefix)
        revision = subject.put(prefix, b"after")
        assert seen(watch.events(1)) == [(PUT, prefix, revision)]


def test_a_start_at_the_current_revision_includes_it(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix)
    current = subject.put(prefix)
    with watch:
        watch.create(prefix, start_revision=current)
        assert seen(watch.events(1)) == [(PUT, prefix, current)]


def test_a_start_at_the_next_revision_includes_that(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    current = subject.put(prefix)
    with watch:
        watch.create(prefix, start_revision=current + 1)
        assert subject.put(prefix) == current + 1
        assert seen(watch.events(1)) == [(PUT, prefix, current + 1)]


def test_a_start_in_the_future_suppresses_what_is_before(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    current = subject.put(prefix)
    with watch:
        watch.create(prefix, start_revision=current + 3)
        assert [subject.put(prefix) for _ in range(4)] == [current + 1, current + 2, current + 3, current + 4]
        assert [event.kv.mod_revision for event in watch.events(2)] == [current + 3, current + 4]


def test_history_comes_in_one_response_with_the_current_revision(
    subject: Subject, watch: WatchPeer, prefix: bytes
) -> None:
    revisions = [subject.put(prefix + name) for name in (b"b", b"a", b"b")]
    revisions.append(subject.delete(prefix, end_of(prefix)))
    current = subject.put(b"elsewhere")
    with watch:
        watch.prefix(prefix, start_revision=revisions[0])
        reply = watch.read()
    # With the subject shared, a lease of another test may have ended meanwhile.
    assert current <= reply.header.revision <= subject.revision
    assert seen(reply.events) == [
        (PUT, prefix + b"b", revisions[0]),
        (PUT, prefix + b"a", revisions[1]),
        (PUT, prefix + b"b", revisions[2]),
        (DELETE, prefix + b"a", revisions[3]),
        (DELETE, prefix + b"b", revisions[3]),
    ]


def test_history_may_begin_in_the_midst(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    revisions = [subject.put(prefix) for _ in range(5)]
    with watch:
        watch.create(prefix, start_revision=revisions[2])
        assert [event.kv.mod_revision for event in watch.events(3)] == revisions[2:]


def test_history_without_a_matching_change_tells_nothing(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    first = subject.put(prefix + b"other")
    with watch:
        watch.create(prefix, start_revision=first)
        watch.create(prefix + b"other", start_revision=first)
        assert watch.read().watch_id == 1
        subject.put(prefix)
        assert watch.read().watch_id == 0


@pytest.mark.slow
def test_history_comes_in_responses_of_a_thousand_revisions(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    put = subject.stub("etcdserverpb.KV/Put")
    futures = [put.future(rpc.PutRequest(key=prefix + b"%d" % (number % 7))) for number in range(1100)]
    revisions = sorted(future.result().header.revision for future in futures)
    with watch:
        watch.prefix(prefix, start_revision=revisions[0])
        pieces = [[event.kv.mod_revision for event in watch.read().events] for _ in range(2)]
    assert pieces == [revisions[:1000], revisions[1000:]]


def test_a_start_before_compaction_cancels_after_created(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    revisions = [subject.put(prefix) for _ in range(3)]
    subject.compact(revisions[2])
    with watch:
        created = watch.create(prefix, start_revision=revisions[1])
        assert (created.canceled, created.watch_id, created.compact_revision) == (False, 0, 0)
        canceled = watch.read()
        assert (canceled.canceled, canceled.created, canceled.watch_id) == (True, False, 0)
        assert (canceled.compact_revision, canceled.cancel_reason) == (revisions[2], "")
        assert canceled.header.revision == 0
        assert canceled.header.cluster_id == created.header.cluster_id
        # The stream goes on, and the id is free again.
        assert watch.create(prefix, watch_id=5).watch_id == 5


def test_a_start_at_the_compacted_revision_is_served(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    revisions = [subject.put(prefix) for _ in range(3)]
    subject.compact(revisions[1])
    with watch:
        watch.create(prefix, start_revision=revisions[1])
        assert [event.kv.mod_revision for event in watch.events(2)] == revisions[1:]


@pytest.mark.parametrize("start", [-1, -(2**63)])
def test_a_negative_start_is_refused(subject: Subject, watch: WatchPeer, prefix: bytes, start: int) -> None:
    subject.compact(subject.put(prefix))
    with watch:
        reply = watch.create(prefix, start_revision=start)
        if subject.like(3, 6):
            assert (reply.watch_id, reply.canceled, reply.cancel_reason) == (-1, True, COMPACTED)
            assert reply.compact_revision == 0
        else:  # 3.5 takes it for a revision long ago
            assert not reply.canceled
            assert watch.read().compact_revision > 0
        assert not watch.create(prefix).canceled


# --- events -----------------------------------------------------------------------------------------------------------


def test_a_put_is_told_with_all_of_the_key(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    lease = subject.grant()
    first = subject.put(prefix, b"old")
    with watch:
        watch.create(prefix)
        second = subject.put(prefix, b"new", lease=lease)
        (event,) = watch.events(1)
    kv = event.kv
    assert (event.type, kv.key, kv.value) == (PUT, prefix, b"new")
    assert (kv.create_revision, kv.mod_revision, kv.version, kv.lease) == (first, second, 2, lease)
    assert not event.HasField("prev_kv")


def test_a_delete_is_told_with_key_and_revision_only(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix, b"value", lease=subject.grant())
    with watch:
        watch.create(prefix)
        revision = subject.delete(prefix)
        (event,) = watch.events(1)
    assert event.type == DELETE
    assert event.kv == type(event.kv)(key=prefix, mod_revision=revision)
    assert not event.HasField("prev_kv")


def test_a_delete_of_nothing_is_not_told(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        subject.delete(prefix)
        revision = subject.put(prefix)
        assert seen(watch.events(1)) == [(PUT, prefix, revision)]


def test_versions_begin_anew_after_a_delete(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        subject.put(prefix)
        subject.put(prefix)
        subject.delete(prefix)
        again = subject.put(prefix)
        events = watch.events(4)
    assert [event.kv.version for event in events] == [1, 2, 0, 1]
    assert events[3].kv.create_revision == again


def test_each_live_revision_is_a_response(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.prefix(prefix)
        revisions = [subject.put(prefix + b"k") for _ in range(5)]
        replies = [watch.read() for _ in revisions]
    assert [reply.header.revision for reply in replies] == revisions
    assert [len(reply.events) for reply in replies] == [1] * 5


def test_a_txn_is_one_response_in_the_order_of_its_operations(
    subject: Subject, watch: WatchPeer, prefix: bytes
) -> None:
    subject.put(prefix + b"old1")
    subject.put(prefix + b"old2")

    def put(name: bytes) -> rpc.RequestOp:
        return rpc.RequestOp(request_put=rpc.PutRequest(key=prefix + name))

    delete = rpc.DeleteRangeRequest(key=prefix + b"old1", range_end=prefix + b"old3")
    nested = rpc.TxnRequest(success=[put(b"m")])
    with watch:
        watch.prefix(prefix)
        operations = [
            put(b"z"),
            rpc.RequestOp(request_delete_range=delete),
            rpc.RequestOp(request_txn=nested),
            put(b"a"),
        ]
        revision = subject.do(rpc.TxnRequest(success=operations)).header.revision
        reply = watch.read()
    assert reply.header.revision == revision
    assert seen(reply.events) == [
        (PUT, prefix + b"z", revision),
        (DELETE, prefix + b"old1", revision),
        (DELETE, prefix + b"old2", revision),
        (PUT, prefix + b"m", revision),
        (PUT, prefix + b"a", revision),
    ]


def test_a_revoked_lease_is_told_as_one_revision_in_key_order(
    subject: Subject, watch: WatchPeer, prefix: bytes
) -> None:
    lease = subject.grant()
    for name in (b"c", b"a", b"b"):
        subject.put(prefix + name, name, lease=lease)
    with watch:
        watch.prefix(prefix, prev_kv=True)
        revision = subject.revoke(lease)
        reply = watch.read()
    assert reply.header.revision == revision
    assert seen(reply.events) == [(DELETE, prefix + name, revision) for name in (b"a", b"b", b"c")]
    assert [(event.prev_kv.value, event.prev_kv.lease) for event in reply.events] == [
        (b"a", lease),
        (b"b", lease),
        (b"c", lease),
    ]


@pytest.mark.slow
def test_an_expired_lease_is_told_as_one_revision_in_key_order(
    subject: Subject, watch: WatchPeer, prefix: bytes
) -> None:
    with watch:
        watch.prefix(prefix, prev_kv=True)
        lease = subject.grant(ttl_s=1)
        for name in (b"c", b"a", b"b"):
            subject.put(prefix + name, lease=lease)
            watch.read()
        before = subject.revision
        subject.pass_time(subject.min_ttl_s)
        reply = watch.read()
    assert reply.header.revision == before + 1 == subject.revision
    assert seen(reply.events) == [(DELETE, prefix + name, before + 1) for name in (b"a", b"b", b"c")]
    assert [event.prev_kv.lease for event in reply.events] == [lease] * 3


# --- options ----------------------------------------------------------------------------------------------------------


def test_prev_kv_comes_with_all_but_the_creating_put(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix, prev_kv=True)
        first = subject.put(prefix, b"1")
        second = subject.put(prefix, b"2")
        subject.delete(prefix)
        subject.put(prefix, b"3")
        created, updated, deleted, recreated = watch.events(4)
    assert not created.HasField("prev_kv")
    assert (updated.prev_kv.value, updated.prev_kv.mod_revision, updated.prev_kv.version) == (b"1", first, 1)
    assert (deleted.prev_kv.value, deleted.prev_kv.mod_revision, deleted.prev_kv.version) == (b"2", second, 2)
    assert (deleted.prev_kv.key, deleted.prev_kv.create_revision) == (prefix, first)
    assert not recreated.HasField("prev_kv")


def test_prev_kv_comes_with_history_too(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    first = subject.put(prefix, b"1")
    subject.put(prefix, b"2")
    subject.delete(prefix)
    with watch:
        watch.create(prefix, prev_kv=True, start_revision=first)
        events = watch.events(3)
    assert [event.prev_kv.value for event in events] == [b"", b"1", b"2"]


def test_prev_kv_that_compaction_took_is_left_out(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix, b"1")
    second = subject.put(prefix, b"2")
    subject.put(prefix, b"3")
    subject.compact(second)
    with watch:
        watch.create(prefix, prev_kv=True, start_revision=second)
        events = watch.events(2)
    assert not events[0].HasField("prev_kv")
    assert events[1].prev_kv.value == b"2"


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize(
    ("filters", "kinds"),
    [
        ([rpc.WatchCreateRequest.NOPUT], [DELETE]),
        ([rpc.WatchCreateRequest.NODELETE], [PUT, PUT]),
        ([], [PUT, DELETE, PUT]),
    ],
)
def test_filters_drop_events(
    subject: Subject, watch: WatchPeer, prefix: bytes, filters: list[int], kinds: list[int], replayed: bool
) -> None:
    start = subject.put(prefix + b"other") + 1
    with watch:
        if not replayed:
            watch.create(prefix, filters=filters)
        subject.put(prefix)
        subject.delete(prefix)
        subject.put(prefix)
        if replayed:
            watch.create(prefix, filters=filters, start_revision=start)
        assert [event.type for event in watch.events(len(kinds))] == kinds


def test_a_response_that_filters_empty_is_not_sent(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        both = [rpc.WatchCreateRequest.NOPUT, rpc.WatchCreateRequest.NODELETE]
        watch.create(prefix, filters=both)
        subject.put(prefix)
        subject.delete(prefix)
        watch.create(prefix)
        subject.put(prefix)
        assert watch.read().watch_id == 1


def test_filters_work_within_a_revision(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix + b"a")
    with watch:
        watch.prefix(prefix, filters=[rpc.WatchCreateRequest.NOPUT])
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=prefix + b"b"))
        delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=prefix + b"a"))
        revision = subject.do(rpc.TxnRequest(success=[put, delete])).header.revision
        assert seen(watch.read().events) == [(DELETE, prefix + b"a", revision)]


def _write_three_large(subject: Subject, prefix: bytes) -> int:
    """Three keys of 900 kB; returns the first revision. Together they are over the bound of a response, 2 MiB."""
    return min(subject.put(prefix + name, b"x" * 900_000) for name in (b"a", b"b", b"c"))


@pytest.mark.slow
def test_a_large_revision_is_split_for_those_who_ask(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    _write_three_large(subject, prefix)
    with watch:
        watch.prefix(prefix, prev_kv=True, fragment=True)
        watch.prefix(prefix, prev_kv=True)
        revision = subject.delete(prefix, end_of(prefix))
        replies: dict[int, list[rpc.WatchResponse]] = {0: [], 1: []}
        for _ in range(3):
            reply = watch.read()
            replies[reply.watch_id].append(reply)
    pieces = replies[0]
    assert [piece.fragment for piece in pieces] == [True, False]
    assert [[event.kv.key[-1:] for event in piece.events] for piece in pieces] == [[b"a", b"b"], [b"c"]]
    assert [piece.header.revision for piece in pieces] == [revision, revision]
    (whole,) = replies[1]
    assert (whole.fragment, len(whole.events)) == (False, 3)


@pytest.mark.slow
def test_large_history_is_split_for_those_who_ask(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    _write_three_large(subject, prefix)
    # One revision: how many of them a response from history tells of is a server's own choice.
    revision = subject.delete(prefix, end_of(prefix))
    with watch:
        watch.prefix(prefix, start_revision=revision, prev_kv=True, fragment=True)
        pieces = [watch.read(), watch.read()]
        watch.prefix(prefix, start_revision=revision, prev_kv=True)
        whole = watch.read()
    assert [(piece.fragment, len(piece.events)) for piece in pieces] == [(True, 2), (False, 1)]
    assert (whole.fragment, len(whole.events)) == (False, 3)


@pytest.mark.slow
def test_an_event_over_the_bound_is_a_piece_of_its_own(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    subject.put(prefix, b"x" * 1_200_000)
    with watch:
        watch.create(prefix, prev_kv=True, fragment=True)
        subject.put(prefix, b"y" * 1_200_000)
        reply = watch.read()
        assert (reply.fragment, len(reply.events)) == (False, 1)
    subject.delete(prefix)


def test_fragments_are_not_marked_where_nothing_is_split(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        assert not watch.create(prefix, fragment=True).fragment
        subject.put(prefix)
        assert not watch.read().fragment


# --- several watchers -------------------------------------------------------------------------------------------------


def test_each_watcher_of_a_stream_is_told_what_it_watches(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"a")
        watch.create(prefix + b"b")
        watch.prefix(prefix)
        for name in (b"a", b"b"):
            revision = subject.put(prefix + name)
            replies = [watch.read(), watch.read()]
            ids = {reply.watch_id for reply in replies}
            assert ids == {0 if name == b"a" else 1, 2}
            assert [seen(reply.events) for reply in replies] == [[(PUT, prefix + name, revision)]] * 2


@pytest.mark.slow
def test_three_hundred_watchers_share_a_stream(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        for number in range(300):
            watch.ask(prefix + b"%d" % (number % 3))
        for _ in range(300):
            assert watch.read().created
        subject.put(prefix + b"1")
        assert sorted(watch.read().watch_id for _ in range(100)) == list(range(1, 300, 3))
        subject.put(prefix + b"2")
        assert watch.read().watch_id % 3 == 2


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_cancel_is_confirmed_and_ends_the_events(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        watch.create(prefix, watch_id=9)
        revision = subject.put(prefix)
        assert {watch.read().watch_id, watch.read().watch_id} == {0, 9}
        watch.cancel(9)
        reply = watch.read()
        assert (reply.canceled, reply.created, reply.watch_id) == (True, False, 9)
        assert (reply.cancel_reason, reply.compact_revision, reply.header.revision) == ("", 0, revision)
        for _ in range(3):
            subject.put(prefix)
            assert watch.read().watch_id == 0


def test_an_id_can_be_used_again_after_its_cancel(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix + b"old", watch_id=5)
        watch.cancel(5)
        assert watch.read().canceled
        assert watch.create(prefix + b"new", watch_id=5).watch_id == 5
        subject.put(prefix + b"old")
        revision = subject.put(prefix + b"new")
        assert seen(watch.events(1)) == [(PUT, prefix + b"new", revision)]


def test_ids_given_by_the_server_are_not_given_again(watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        assert watch.create(prefix).watch_id == 0
        watch.cancel(0)
        assert watch.read().canceled
        assert watch.create(prefix).watch_id == 1


@pytest.mark.parametrize("watch_id", [0, 3, -1])
def test_a_cancel_of_an_unknown_id_has_no_reply(watch: WatchPeer, prefix: bytes, watch_id: int) -> None:
    with watch:
        watch.cancel(watch_id)
        assert watch.create(prefix).watch_id == 0


def test_a_second_cancel_has_no_reply(watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        watch.cancel(0)
        watch.cancel(0)
        assert watch.read().canceled
        assert watch.create(prefix).created


def test_the_stream_outlives_its_watchers_and_its_half_close(subject: Subject, watch: WatchPeer, prefix: bytes) -> None:
    with watch:
        watch.create(prefix)
        watch.stream.half_close()
        revisions = [subject.put(prefix) for _ in range(3)]
        assert [event.kv.mod_revision for event in watch.events(3)] == revisions
