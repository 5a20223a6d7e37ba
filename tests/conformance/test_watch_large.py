# SPDX-License-Identifier: Apache-2.0
"""Watches of one revision with very many events: whole, in order, however the watcher asked for it.

Lessor finds the watchers, encodes and sends such a revision in steps. A client sees no difference to etcd.
"""

import base64
import json
from collections.abc import Iterator

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import Subject, end_of, read_line
from tests.conformance.watch_peer import DELETE, PUT, WatchPeer, seen

KEYS = 3_000  # more than are sent in one step


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def keys(subject: Subject, prefix: bytes) -> Iterator[list[bytes]]:
    keys = [b"%bk%04d" % (prefix, number) for number in range(KEYS)]
    for first in range(0, KEYS, 100):
        puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"v")) for key in keys[first : first + 100]]
        subject.do(rpc.TxnRequest(success=puts))
    yield keys
    subject.delete(prefix, end_of(prefix))


def test_every_live_watcher_gets_the_revision_in_one_response(
    subject: Subject, prefix: bytes, keys: list[bytes]
) -> None:
    with WatchPeer(subject) as all_keys, WatchPeer(subject) as others:
        all_keys.prefix(prefix)
        all_keys.prefix(prefix, prev_kv=True)
        others.create(keys[7], prev_kv=True)
        others.create(keys[10], range_end=keys[1_500])
        others.prefix(prefix, filters=[rpc.WatchCreateRequest.NODELETE])
        revision = subject.delete(prefix, end_of(prefix))
        after = subject.put(prefix + b"z")
        deletes = [(DELETE, key, revision) for key in keys]

        replies = sorted((all_keys.read() for _ in range(2)), key=lambda reply: reply.watch_id)
        assert [seen(reply.events) for reply in replies] == [deletes, deletes]
        assert not any(event.HasField("prev_kv") for event in replies[0].events)
        assert all(event.prev_kv.value == b"v" for event in replies[1].events)
        assert [reply.header.revision for reply in replies] == [revision, revision]
        assert [seen(all_keys.read().events) for _ in range(2)] == [[(PUT, prefix + b"z", after)]] * 2

        told = {reply.watch_id: reply for reply in (others.read() for _ in range(3))}
        assert seen(told[0].events) == [deletes[7]]
        assert told[0].events[0].prev_kv.value == b"v"
        assert seen(told[1].events) == deletes[10:1_500]
        assert seen(told[2].events) == [(PUT, prefix + b"z", after)]


def test_a_txn_of_deletes_tells_them_in_its_own_order(subject: Subject, prefix: bytes, keys: list[bytes]) -> None:
    def delete(first: int, last: int) -> rpc.RequestOp:
        request = rpc.DeleteRangeRequest(key=keys[first], range_end=keys[last - 1] + b"\0")
        return rpc.RequestOp(request_delete_range=request)

    with WatchPeer(subject) as watch:
        watch.prefix(prefix)
        watch.create(keys[0], range_end=keys[2_000])
        success = [delete(1_500, 3_000), delete(0, 1_500)]
        revision = subject.do(rpc.TxnRequest(success=success)).header.revision
        told = {reply.watch_id: reply for reply in (watch.read() for _ in range(2))}
    ordered = keys[1_500:] + keys[:1_500]
    assert seen(told[0].events) == [(DELETE, key, revision) for key in ordered]
    assert seen(told[1].events) == [(DELETE, key, revision) for key in ordered if key < keys[2_000]]


def test_history_has_the_revision_in_one_response(subject: Subject, prefix: bytes, keys: list[bytes]) -> None:
    before = subject.put(prefix + b"a")
    revision = subject.delete(keys[0], end_of(prefix))
    after = subject.put(prefix + b"z")
    with WatchPeer(subject) as watch:
        watch.prefix(prefix, start_revision=before)
        events = watch.read().events
        while len(events) < KEYS + 2:
            more = watch.read().events
            assert more[0].kv.mod_revision > events[-1].kv.mod_revision, "a revision came in two responses"
            events.extend(more)
    deletes = [(DELETE, key, revision) for key in keys]
    assert seen(events) == [(PUT, prefix + b"a", before), *deletes, (PUT, prefix + b"z", after)]


def test_the_revision_in_json(subject: Subject, prefix: bytes, keys: list[bytes]) -> None:
    create = {"create_request": {"key": b64(prefix), "range_end": b64(end_of(prefix))}}
    with subject.http_stream("/v3/watch", json.dumps(create)) as stream:
        assert read_line(stream)["result"]["created"]
        revision = subject.delete(prefix, end_of(prefix))
        after = subject.put(prefix + b"z")
        result = read_line(stream)["result"]
        (last,) = read_line(stream)["result"]["events"]
    assert result["header"]["revision"] == str(revision)
    deletes = [{"type": "DELETE", "kv": {"key": b64(key), "mod_revision": str(revision)}} for key in keys]
    assert result["events"] == deletes
    assert last["kv"]["mod_revision"] == str(after)


@pytest.mark.slow
def test_a_large_revision_of_many_events_is_split_for_those_who_ask(
    subject: Subject, prefix: bytes, keys: list[bytes]
) -> None:
    for first in range(0, KEYS, 100):
        puts = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"x" * 2_000)) for key in keys[first : first + 100]
        ]
        subject.do(rpc.TxnRequest(success=puts))
    with WatchPeer(subject) as watch:
        watch.prefix(prefix, prev_kv=True, fragment=True)
        revision = subject.delete(prefix, end_of(prefix))
        pieces = [watch.read()]
        while pieces[-1].fragment:
            pieces.append(watch.read())
    assert len(pieces) >= 3
    assert all(len(piece.events) < 1_100 for piece in pieces)
    events = [event for piece in pieces for event in piece.events]
    assert seen(events) == [(DELETE, key, revision) for key in keys]
