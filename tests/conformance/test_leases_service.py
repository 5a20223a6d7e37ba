# SPDX-License-Identifier: Apache-2.0
"""lessorpb.Leases, Lessor's own service: lists page by page, lease events, over gRPC and JSON, and who may see what."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import leases_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from tests.conformance.auth_peer import CHEAP, DENIED, NOBODY, READ, WRITE, As, enable_auth
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.subject import OURS, Conversation, Subject, end_of, new_lease_id, read_line, running
from tests.metrics_page import fresh

GRANTED, EXPIRED, REVOKED = 0, 1, 2
LIST, WATCH = "lessorpb.Leases/List", "lessorpb.Leases/Watch"


@pytest.fixture(scope="module", params=OURS)
def ours(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param) as subject:
        yield subject


@pytest.fixture(scope="module", params=OURS)
def locked(request: pytest.FixtureRequest) -> Iterator[As]:
    """Root, where auth is on."""
    with running(request.param, CHEAP) as subject:
        yield enable_auth(subject)


def listed(subject: Subject, prefix: bytes, **request: Any) -> list[Any]:
    """The leases with keys below the prefix, over all pages."""
    asked = leases_pb2.LeaseListRequest(key_prefix=prefix, **request)
    items: list[Any] = []
    while True:
        reply = As(subject).do(asked)
        items += reply.leases
        if not reply.next_page_token:
            return items
        asked.page_token = reply.next_page_token


def watching(subject: Subject | As) -> Conversation:
    """A stream whose watch has begun."""
    return begun(subject.conversation(WATCH))


def begun(stream: Conversation) -> Conversation:
    stream.send(leases_pb2.LeaseWatchRequest())
    stream.half_close()
    created = stream.read()
    assert created.created
    assert not created.events
    return stream


def events_of(stream: Conversation, *lease_ids: int, count: int) -> list[tuple[int, int, int, int, int]]:
    """The next events about these leases: (type, id, TTL, keys, revision). Other tests' leases are passed over."""
    found: list[Any] = []
    while len(found) < count:
        response = stream.read()
        assert not isinstance(response, Failure), response
        assert not response.created
        found += [event for event in response.events if event.ID in lease_ids]
    return [(event.type, event.ID, event.TTL, event.key_count, event.revision) for event in found]


def test_a_list_tells_times_and_keys_page_by_page(ours: Subject, prefix: bytes) -> None:
    ids = [ours.grant(ttl_s) for ttl_s in (300, 100, 200)]
    for number, lease_id in enumerate(ids):
        for key in range(number + 1):
            ours.put(prefix + b"%d/%d" % (number, key), lease=lease_id)
    by_time = listed(ours, prefix, order=leases_pb2.LeaseListRequest.REMAINING, limit=1, keys_limit=2)
    assert [item.ID for item in by_time] == [ids[1], ids[2], ids[0]]
    assert [item.TTL for item in by_time] == [100, 200, 300]
    assert all(0 <= item.TTL * 1000 - item.remaining_ms < 20_000 for item in by_time)
    assert [item.key_count for item in by_time] == [2, 3, 1]
    assert list(by_time[1].keys) == [prefix + b"2/0", prefix + b"2/1"]
    assert [item.ID for item in listed(ours, prefix)] == sorted(ids)
    assert [item.ID for item in listed(ours, prefix, order=leases_pb2.LeaseListRequest.KEYS)] == ids[::-1]
    assert [item.ID for item in listed(ours, prefix, remaining_ms_max=200_000)] == sorted(ids[1:])


def test_the_remaining_time_is_that_of_the_lessor(ours: Subject, prefix: bytes) -> None:
    lease_id = ours.grant(50)
    ours.put(prefix, lease=lease_id)
    ours.pass_time(0.5)
    (before,) = listed(ours, prefix)
    assert 30_000 < before.remaining_ms <= 49_500
    stream = ours.keepalive()
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read().TTL == 50
    stream.cancel()
    assert listed(ours, prefix)[0].remaining_ms > before.remaining_ms


def test_what_becomes_of_leases_is_told_as_it_happens(ours: Subject, prefix: bytes) -> None:
    stream = watching(ours)
    long, short = new_lease_id(), new_lease_id()
    ours.grant(500, long)
    ours.grant(ours.min_ttl_s, short)
    ours.put(prefix, lease=short)
    ours.put(prefix + b"2", lease=long)
    assert events_of(stream, long, short, count=2) == [
        (GRANTED, long, 500, 0, 0),
        (GRANTED, short, ours.min_ttl_s, 0, 0),
    ]
    ours.pass_time(ours.min_ttl_s)
    (expired,) = events_of(stream, long, short, count=1)
    assert expired[:4] == (EXPIRED, short, ours.min_ttl_s, 1)
    assert ours.get(prefix) is None
    revision = ours.revoke(long)
    assert events_of(stream, long, short, count=1) == [(REVOKED, long, 500, 1, revision)]
    assert expired[4] == revision - 1
    stream.cancel()


def test_only_what_comes_after_the_beginning_is_told(ours: Subject) -> None:
    early = watching(ours)
    first, second = ours.grant(), ours.grant()
    late = watching(ours)
    ours.revoke(first)
    assert [event[:2] for event in events_of(early, first, second, count=3)] == [
        (GRANTED, first),
        (GRANTED, second),
        (REVOKED, first),
    ]
    assert [event[:2] for event in events_of(late, first, second, count=1)] == [(REVOKED, first)]
    early.cancel()
    late.cancel()


def test_the_same_over_json(ours: Subject, prefix: bytes) -> None:
    with ours.http_stream("/v3/lessor/leases/watch", "") as stream:
        assert read_line(stream)["result"]["created"] is True
        lease_id = ours.grant(600)
        ours.put(prefix, lease=lease_id)
        assert read_line(stream)["result"]["events"] == [{"ID": str(lease_id), "TTL": "600"}]
        body = {"key_prefix": base64.b64encode(prefix).decode(), "keys_limit": 1, "order": "REMAINING"}
        reply = ours.post("/v3/lessor/leases/list", body)
        (item,) = reply.json()["leases"]
        assert 0 < int(item.pop("remaining_ms")) <= 600_000
        assert item == {
            "ID": str(lease_id),
            "TTL": "600",
            "key_count": "1",
            "keys": [base64.b64encode(prefix).decode()],
        }
        revision = ours.revoke(lease_id)
        event = {"type": "REVOKED", "ID": str(lease_id), "TTL": "600", "key_count": "1", "revision": str(revision)}
        assert read_line(stream)["result"]["events"] == [event]
    refused = ours.post("/v3/lessor/leases/list", {"page_token": "eA=="})
    assert (refused.status, refused.json()["message"]) == (400, errors.INVALID_PAGE_TOKEN.message)


@pytest.mark.slow
def test_a_watcher_that_does_not_read_is_cut_off_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else notices, and it may begin anew. In process, where the bound can be set low."""
    monkeypatch.setattr(limits, "CONNECTION_BACKLOG_BYTES_MAX", 4_096)
    with running("in-process") as subject, lazy_stub(subject) as stub:
        stream = begun(Conversation(stub, CALL_S_MAX, []))
        quick = watching(subject)
        granted = []
        while streams(subject) == 2:
            for _ in range(200):
                granted.append(subject.grant())
                assert events_of(quick, granted[-1], count=1)
        seen = []
        while not isinstance(response := stream.read(), Failure):
            seen += [event.ID for event in response.events]
        assert response == Failure.of(errors.LEASE_WATCH_LAGS.error())
        assert seen == granted[: len(seen)]  # without a gap up to where it ends
        again = begun(Conversation(stub, CALL_S_MAX, []))
        last = subject.grant()
        assert events_of(again, last, *granted, count=1) == [(GRANTED, last, 600, 0, 0)]
        for each in (stream, quick, again):
            each.cancel()


# --- who may see what -------------------------------------------------------------------------------------------


def test_who_may_list(locked: As, prefix: bytes) -> None:
    """As LeaseLeases: whoever is logged in, unless there is a key that he may not read."""
    root = locked.log_in("root", "root's")
    lease_id = new_lease_id()
    root.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    root.do(rpc.PutRequest(key=prefix + b"k", lease=lease_id))
    reader = root.user_with((READ, prefix, end_of(prefix)))
    writer = root.user_with((WRITE, prefix, end_of(prefix)))
    for asked in (leases_pb2.LeaseListRequest(keys_limit=1), leases_pb2.LeaseListRequest(key_prefix=b"nothing")):
        assert As(locked.subject).call(asked) == NOBODY
        assert writer.call(asked) == DENIED == writer.call(rpc.LeaseLeasesRequest())
    asked = leases_pb2.LeaseListRequest(keys_limit=1)
    for caller in (root, reader):
        assert [(item.ID, list(item.keys)) for item in caller.do(asked).leases] == [(lease_id, [prefix + b"k"])]
    root.do(rpc.PutRequest(key=b"elsewhere", lease=lease_id))
    assert reader.call(asked) == DENIED == reader.call(rpc.LeaseLeasesRequest())
    assert writer.post("/v3/lessor/leases/list").status == 403
    root.do(rpc.LeaseRevokeRequest(ID=lease_id))
    assert not writer.do(asked).leases


def test_who_may_watch(locked: As, prefix: bytes) -> None:
    """Whoever may read every key: leases and keys to come are nobody else's business."""
    root = locked.log_in("root", "root's")
    some = root.user_with((READ, prefix, end_of(prefix)), (WRITE, b"\0", b"\0"))
    everything = root.user_with((READ, b"\0", b"\0"))
    for caller, answer, status in ((As(locked.subject), NOBODY, 400), (some, DENIED, 403)):
        stream = caller.conversation(WATCH)
        stream.send(leases_pb2.LeaseWatchRequest())
        stream.half_close()
        assert stream.read() == answer
        assert caller.post("/v3/lessor/leases/watch").status == status
    lease_id = new_lease_id()
    streams = [watching(caller) for caller in (root, everything)]
    root.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    for stream in streams:
        assert events_of(stream, lease_id, count=1) == [(GRANTED, lease_id, 600, 0, 0)]
        stream.cancel()


@contextmanager
def lazy_stub(subject: Subject) -> Iterator[Any]:
    """The call of Watch over a connection of its own whose windows do not grow."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    method = BY_PATH[f"/{WATCH}"]
    with grpc.insecure_channel(subject.server.address, options=options) as channel:
        yield channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )


def streams(subject: Subject) -> int:
    """How many lease watches the server has."""
    metrics = fresh(lambda: subject.request("GET", "/metrics").body.decode())
    counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if 'grpc_service="lessorpb.Leases"' in line)
    started = sum(float(n) for name, n in counts.items() if "started" in name and '"Watch"' in name)
    handled = sum(float(n) for name, n in counts.items() if "handled" in name and '"Watch"' in name)
    return int(started - handled)
