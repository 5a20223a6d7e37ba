# SPDX-License-Identifier: Apache-2.0
"""The client library's words about keys, leases and watches, on Lessor and on a real etcd: `Client` from many threads,
and through it `AsyncClient`, which does the work."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import (
    AsyncClient,
    Blame,
    CallTimeout,
    Client,
    Compacted,
    ConnectionLost,
    Event,
    Key,
    LeaseEvent,
    LeaseListRequest,
    LeaseLost,
    OutcomeUnknown,
    ServerError,
    op,
    prefix_end,
)
from tests.conformance.subject import Subject, new_lease_id, running
from tests.ports import free_port


@pytest.fixture
def client(subject: Subject) -> Iterator[Client]:
    with Client(subject.server.address) as client:
        yield client


def test_what_is_put_is_got_until_it_is_deleted(client: Client, prefix: bytes) -> None:
    first = client.put(prefix + b"a", "1")
    second = client.put(prefix + b"b", b"\xff\x00", prev_kv=True)
    assert second.header.revision == first.header.revision + 1
    reply = client.get(prefix, prefix=True)
    assert [(kv.key, kv.value) for kv in reply.kvs] == [(prefix + b"a", b"1"), (prefix + b"b", b"\xff\x00")]
    assert reply == client.get(prefix, range_end=prefix_end(prefix))
    assert client.get(prefix, prefix=True, count_only=True).count == 2
    assert client.delete(prefix + b"a", prev_kv=True).prev_kvs[0].value == b"1"
    assert client.delete(prefix, prefix=True).deleted == 1
    assert not client.get(prefix, prefix=True).kvs
    with pytest.raises(ValueError, match="exclude"):
        client.get(prefix, prefix=True, range_end=b"x")


def test_a_range_in_pieces(subject: Subject, client: Client, prefix: bytes) -> None:
    for number in range(30):
        client.put(prefix + b"%02d" % number, b"v" * number)
    if not (subject.is_lessor or subject.like(3, 7)):
        with pytest.raises(ServerError) as caught:
            list(client.get_stream(prefix, prefix=True))
        assert caught.value.code == Code.UNIMPLEMENTED
        return
    pieces = list(client.get_stream(prefix, prefix=True, limit=25))
    assert [kv.key for piece in pieces for kv in piece.kvs] == [prefix + b"%02d" % number for number in range(25)]
    assert [piece.count for piece in pieces] == [0] * (len(pieces) - 1) + [30]
    assert pieces[-1].more
    reply = rpc.RangeResponse()
    for piece in client.get_stream(prefix, range_end=prefix_end(prefix), revision=client.get(prefix).header.revision):
        reply.MergeFrom(piece)
    assert reply == client.get(prefix, prefix=True)
    for refused, code in (
        (client.get_stream(prefix, revision=1 << 40), Code.OUT_OF_RANGE),
        (client.get_stream(prefix, sort_order=2), Code.UNIMPLEMENTED),
    ):
        with pytest.raises(ServerError) as caught:
            list(refused)
        assert caught.value.code == code


def test_a_range_in_pieces_is_left_in_the_middle(subject: Subject, prefix: bytes) -> None:
    if not (subject.is_lessor or subject.like(3, 7)):
        pytest.skip("an etcd of before RangeStream")

    async def main() -> None:
        async with AsyncClient(subject.server.address) as client:
            for number in range(30):
                await client.put(prefix + b"%02d" % number, bytes(500_000))
            pieces = client.get_stream(prefix, prefix=True)
            assert (await anext(pieces)).kvs
            await client.delete(prefix, prefix=True)
            await pieces.aclose()
            with pytest.raises(CallTimeout):
                async for _ in client.get_stream(b"\0", range_end=b"\0", timeout_s=1e-9):
                    pass
            assert [piece.count async for piece in client.get_stream(prefix, prefix=True)] == [0]

    asyncio.run(main())


def test_a_txn_in_words(client: Client, prefix: bytes) -> None:
    seat = prefix + b"seat"
    for name, won in (("ann", True), ("bob", False)):
        txn = client.transaction().when(Key(seat).missing).then(op.put(seat, name)).otherwise(op.get(seat))
        reply = txn.commit()
        assert reply.succeeded is won
    assert reply.responses[0].response_range.kvs[0].value == b"ann"
    kv = reply.responses[0].response_range.kvs[0]
    holds = [
        Key(seat).value == "ann",
        Key(seat).value != b"bob",
        Key(seat).value < "b",
        Key(seat).version == 1,
        Key(seat).mod_revision > 0,
        Key(seat).create_revision == kv.create_revision,
        Key(seat).lease_id == 0,
        Key(seat).exists,
        Key(prefix, prefix=True).version < 2,
    ]
    nested = op.txn([Key(seat).exists], [op.delete(prefix, prefix=True, prev_kv=True)])
    reply = client.transaction().when(*holds).then(op.put(b"x" + prefix), nested).commit()
    assert reply.succeeded
    assert reply.responses[1].response_txn.responses[0].response_delete_range.deleted == 1
    client.put(seat, "bob")
    for wrong in (Key(seat).missing, Key(seat).version > 1, Key(seat).value == "ann", Key(seat).value != "bob"):
        assert not client.transaction().when(wrong).commit().succeeded


def test_the_five_calls_about_leases(client: Client, prefix: bytes) -> None:
    lease_id = new_lease_id()
    assert (lease_id, 60) == (client.grant(60, lease_id).ID, client.grant(60).TTL)
    client.put(prefix + b"a", lease_id=lease_id)
    reply = client.time_to_live(lease_id, keys=True)
    assert (reply.grantedTTL, list(reply.keys)) == (60, [prefix + b"a"])
    assert 0 < reply.TTL <= 60
    assert lease_id in [lease.ID for lease in client.leases().leases]
    assert client.keep_alive_once(lease_id).TTL == 60
    with client.keep_alive(lease_id) as renewals:
        assert next(renewals).TTL == 60
    client.revoke(lease_id)
    assert client.time_to_live(lease_id).TTL == -1
    assert not client.get(prefix + b"a").kvs
    assert list(client.keep_alive(lease_id)) == []
    for gone in (client.revoke, client.keep_alive_once):
        with pytest.raises(ServerError, match="requested lease not found") as caught:
            gone(lease_id)
        assert (caught.value.code, caught.value.blame) == (Code.NOT_FOUND, Blame.CALLER)
        assert not caught.value.outcome_unknown


def test_a_lease_lives_as_long_as_its_block(client: Client, prefix: bytes) -> None:
    with client.lease(60) as lease:
        client.put(prefix + b"a", lease_id=lease.id)
        lease_id = lease.id
        assert lease.alive
        assert 0 < lease.remaining_s <= lease.ttl_s == 60
    assert not client.get(prefix + b"a").kvs
    assert client.time_to_live(lease_id).TTL == -1


@pytest.mark.slow
def test_a_lease_is_renewed_in_the_background(subject: Subject, client: Client, prefix: bytes) -> None:
    with client.lease(subject.min_ttl_s) as lease:
        client.put(prefix + b"a", lease_id=lease.id)
        with client.events(prefix + b"a") as watch, pytest.raises(CallTimeout):
            watch.next(timeout_s=subject.min_ttl_s * 2.0)
        assert lease.alive
        assert client.get(prefix + b"a").kvs


@pytest.mark.slow
def test_a_revoked_lease_is_lost_to_its_owner(subject: Subject, client: Client) -> None:
    losses: list[LeaseLost] = []

    def look(error: LeaseLost) -> None:
        losses.append(error)
        client.get(b"x")  # a callback may call the client

    lease = client.lease(subject.min_ttl_s, on_lost=look).grant()
    lease_id = lease.id
    client.revoke(lease_id)
    assert lease.lost.wait(timeout_s=subject.min_ttl_s)
    with pytest.raises(LeaseLost, match="the server says that it has ended"):
        lease.check()
    lease.revoke()
    assert [error.lease_id for error in losses] == [lease_id]


def test_events_are_told_from_the_moment_the_block_begins(client: Client, prefix: bytes) -> None:
    with client.events(prefix, prefix=True, prev_kv=True) as watch:
        client.put(prefix + b"a", "1")
        put = client.put(prefix + b"a", "2")
        gone = client.delete(prefix + b"a")
        events = [watch.next(timeout_s=10) for _ in range(3)]
        assert watch.revision == gone.header.revision
    assert [(event.type, event.kv.value, event.prev_kv.value) for event in events] == [
        (Event.PUT, b"1", b""),
        (Event.PUT, b"2", b"1"),
        (Event.DELETE, b"", b"2"),
    ]
    with client.events(prefix, prefix=True, start_revision=put.header.revision) as watch:
        assert watch.revision == put.header.revision - 1
        again = [next(watch), next(watch)]
    assert [event.kv.mod_revision for event in again] == [event.kv.mod_revision for event in events[1:]]


def test_a_watch_tells_progress(client: Client, prefix: bytes) -> None:
    with client.events(prefix, progress_notify=True) as watch:
        other = client.put(prefix + b"unwatched").header.revision
        while watch.revision < other:
            with pytest.raises(CallTimeout):
                watch.next(timeout_s=0.05)
    assert watch.revision >= other


def test_a_watch_in_the_past_that_is_gone_says_where_the_history_begins(client: Client, prefix: bytes) -> None:
    first = client.put(prefix + b"a").header.revision
    last = client.put(prefix + b"a").header.revision
    client.compact(last)
    with client.events(prefix, prefix=True, start_revision=first) as watch:
        for _ in range(2):
            with pytest.raises(Compacted) as caught:
                next(watch)
            assert (caught.value.start_revision, caught.value.compact_revision) == (first, last)


def test_responses_keep_what_belongs_together(client: Client, prefix: bytes) -> None:
    with client.watch(prefix, prefix=True, start_revision=client.put(prefix).header.revision) as responses:
        next(responses)
        client.txn(success=[op.put(prefix + b"a"), op.put(prefix + b"b")])
        assert len(next(responses).events) == 2


def test_many_threads_share_a_client(client: Client, prefix: bytes) -> None:
    def work(number: int) -> int:
        for _ in range(10):
            client.put(prefix + b"%d" % number, str(number))
        return client.get(prefix + b"%d" % number).kvs[0].version

    with client.events(prefix, prefix=True) as watch, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [10] * 8
        revisions = [watch.next(timeout_s=10).kv.mod_revision for _ in range(80)]
    assert revisions == sorted(set(revisions))


def test_closing_ends_what_waits(subject: Subject, prefix: bytes) -> None:
    client = Client(subject.server.address)
    watch = client.events(prefix)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            next(watch)
        except BaseException as error:
            ended.append(error)

    with watch:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert client.get(prefix).count == 0
        client.close()
        waiting.join(10)
        assert [type(error).__name__ for error in ended] == ["ClientClosed"]
        client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.get(prefix)


def test_a_server_that_is_not_there_is_the_networks_fault(prefix: bytes) -> None:
    with Client(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(ConnectionLost, match="connection refused") as caught:
            client.put(prefix)
        assert caught.value.blame is Blame.NETWORK
        assert not isinstance(caught.value, OutcomeUnknown)  # it was never sent
        with pytest.raises(ConnectionLost), client.lease(10):
            pass
        with pytest.raises(ConnectionLost), client.events(prefix):
            pass


def test_the_next_endpoint_is_asked_when_one_is_not_there(subject: Subject, prefix: bytes) -> None:
    with Client([f"127.0.0.1:{free_port()}", subject.server.address]) as client:
        client.put(prefix + b"a")
        assert client.get(prefix + b"a").count == 1


def test_proxies_of_the_environment_are_ignored(
    subject: Subject, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Client(subject.server.address) as client:
        client.put(prefix)


def test_maintenance_and_cluster(subject: Subject, client: Client) -> None:
    status = client.maintenance.status()
    assert subject.version == tuple(int(part) for part in status.version.split(".")[:2])
    (member,) = client.cluster.member_list().members
    assert member.ID == status.header.member_id == status.leader
    assert not client.maintenance.alarms().alarms
    assert not client.maintenance.alarm_disarm(member.ID, rpc.NOSPACE).alarms
    client.maintenance.defragment(timeout_s=60)
    assert client.maintenance.hash_kv().hash == client.maintenance.hash_kv().hash
    assert b"".join(part.blob for part in client.snapshot())
    assert not client.auth.status().enabled


def test_the_same_words_for_tasks(subject: Subject, prefix: bytes) -> None:
    async def main() -> None:
        async with AsyncClient(subject.server.address) as client:
            async with client.lease(60) as lease, client.events(prefix, prefix=True) as watch:
                await asyncio.gather(*(client.put(prefix + b"%d" % number, lease_id=lease.id) for number in range(5)))
                types = [(await watch.next(timeout_s=10)).type for _ in range(5)]
            assert types == [Event.PUT] * 5
            assert not (await client.get(prefix, prefix=True)).kvs

    asyncio.run(main())


# --- Lessor's own -----------------------------------------------------------------------------------------------------


def test_leases_page_by_page_and_what_becomes_of_them(subject: Subject, client: Client, prefix: bytes) -> None:
    pages = client.lease_list(key_prefix=prefix, remaining_s_max=400, limit=1, keys_limit=9)
    if not subject.is_lessor:
        for stream in (pages, client.lease_events()):
            with pytest.raises(ServerError) as caught:
                next(iter(stream))
            assert caught.value.code == Code.UNIMPLEMENTED
        return
    events = client.lease_events()
    assert next(events).created
    ids = [client.grant(ttl_s, new_lease_id()).ID for ttl_s in (300, 200, 500)]
    for lease_id in ids:
        client.put(prefix + b"%d" % lease_id, lease_id=lease_id)
    found = [[(item.ID, item.TTL, list(item.keys)) for item in page.leases] for page in pages]
    assert found == [[(ids[0], 300, [prefix + b"%d" % ids[0]])], [(ids[1], 200, [prefix + b"%d" % ids[1]])]]
    by_time = client.lease_list(key_prefix=prefix, order=LeaseListRequest.REMAINING)
    assert [item.ID for item in next(iter(by_time)).leases] == [ids[1], ids[0], ids[2]]
    revision = client.revoke(ids[0]).header.revision
    received: list[tuple[int, int, int]] = []
    while len(received) < 4:
        received += [(event.type, event.ID, event.revision) for event in next(events).events if event.ID in ids]
    assert received == [*((LeaseEvent.GRANTED, each, 0) for each in ids), (LeaseEvent.REVOKED, ids[0], revision)]
    events.close()


def test_lease_events_end_with_the_server() -> None:
    """A gap is never hidden: the iterator ends with an error, and is not begun anew."""
    with running("in-process") as mine, Client(mine.server.address) as client:
        events = client.lease_events()
        assert next(events).created
        mine.server.stop()
        with pytest.raises((ConnectionLost, ServerError)):
            next(events)
