# SPDX-License-Identifier: Apache-2.0
"""/metrics: what etcd counts about leases, keys and watches is there under etcd's names, and moves as in etcd.

Each step compares the metrics before and after it: they must move by the same amounts in Lessor and in a real etcd.
"""

import re
import time
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import OURS, RUNNERS, Subject, running
from tests.conformance.watch_peer import WatchPeer
from tests.metrics_page import fresh
from tests.ports import free_port

LEASE = ("granted_total", "revoked_total", "renewed_total", "ttl_total_bucket", "ttl_total_sum", "ttl_total_count")
OPERATIONS = ("range_total", "put_total", "delete_total", "txn_total")
SIZES = ("db_total_size_in_bytes", "db_total_size_in_use_in_bytes", "db_open_read_transactions")
STORE = (
    *("keys_total", "watcher_total", "watch_stream_total", "slow_watcher_total", "events_total"),
    *("pending_events_total", "current_revision", "compact_revision", "total_put_size_in_bytes"),
)
SERVER = (
    *("has_leader", "is_leader", "is_learner", "leader_changes_seen_total", "version", "id", "quota_backend_bytes"),
    *("proposals_committed_total", "proposals_applied_total", "proposals_pending", "proposals_failed_total"),
    *("health_success", "health_failures", "client_requests_total"),
)
NAMES = {
    *(f"etcd_debugging_lease_{name}" for name in LEASE),
    "etcd_debugging_server_lease_expired_total",
    *(f"etcd_mvcc_{name}" for name in (*OPERATIONS, *SIZES)),
    *(f"etcd_debugging_mvcc_{name}" for name in STORE),
    *(f"etcd_server_{name}" for name in SERVER),
    *(f"grpc_server_{name}_total" for name in ("started", "handled", "msg_received", "msg_sent")),
    *(f"etcd_disk_{name}_duration_seconds_bucket" for name in ("backend_commit", "wal_fsync", "backend_snapshot")),
    *("etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total"),
}
Figures = dict[str, float]

# What the queries of etcd's dashboards and alerts, and those of Kubernetes', ask a single member for.
ASKED_FOR = {
    *("etcd_server_has_leader", "etcd_server_leader_changes_seen_total", "etcd_server_quota_backend_bytes"),
    *(f"etcd_server_proposals_{name}" for name in ("committed_total", "applied_total", "pending", "failed_total")),
    *("grpc_server_started_total", "grpc_server_handled_total", "process_resident_memory_bytes"),
    *("etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes"),
    *(f"etcd_disk_{name}_duration_seconds_bucket" for name in ("wal_fsync", "backend_commit")),
    *("etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total"),
    *("process_open_fds", "process_max_fds", "os_fd_used", "os_fd_limit", "etcd_server_version"),
    "etcd_debugging_mvcc_keys_total",
}
# Families of etcd 3.7.3 that have no meaning here: docs/compatibility.md says why.
LEFT_OUT = re.compile(
    "|".join(
        (
            "go_.*",
            "promhttp_.*",
            "process_(network_.*|virtual_memory_max_bytes)",
            "etcd_grpc_proxy_.*",
            "etcd_network_(known_peers|active_peers|peer_.*)",
            "etcd_(debugging_)?snap_.*",
            "etcd_server_(snapshot_apply_.*|heartbeat_.*|learner_.*|.*read_indexes_.*|slow_apply_.*|apply_duration_.*)",
            "etcd_server_(go_version|feature_enabled)",
            "etcd_debugging_store_.*",
            "etcd_debugging_disk_backend_commit_.*",
            "etcd_debugging_mvcc_(db|index)_compaction_(last|pause_.*|total_duration_.*)",
            "etcd_debugging_server_watch_send_loop_.*",
            "etcd_disk_wal_write_.*",
            "etcd_mvcc_hash_.*",
        )
    )
)


@pytest.fixture(scope="module", params=RUNNERS)
def alone(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param) as server:
        yield server


def page_of(subject: Subject) -> str:
    return fresh(lambda: subject.request("GET", "/metrics").body.decode())


def names_of(page: str) -> set[str]:
    """The names of all families."""
    return set(re.findall(r"^# TYPE (\w+) \w+$", page, re.MULTILINE))


def figures(subject: Subject) -> Figures:
    """Each sample by its name, labels included, in a fixed order and form."""
    found: Figures = {}
    for line in page_of(subject).splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if sample:
            labels = ",".join(sorted(re.findall(r'\w+="[^"]*"', sample[2] or "")))
            found[f"{sample[1]}{{{labels}}}" if labels else sample[1]] = float(sample[3])
    return found


def moved(subject: Subject, work: Callable[[], object], expected: Figures) -> None:
    """After `work` exactly those of `expected` have moved by that much; they may take a moment."""
    before = figures(subject)
    work()
    give_up = time.monotonic() + 10
    while True:
        after = figures(subject)
        by = {name: after.get(name, 0) - before.get(name, 0) for name in expected}
        if by == expected:
            return
        assert time.monotonic() < give_up, by
        time.sleep(0.02)  # waiting for another process, not for a clock


MVCC, DEBUG, LEASES = "etcd_mvcc_", "etcd_debugging_mvcc_", "etcd_debugging_lease_"


def test_every_name_is_there(alone: Subject) -> None:
    alone.put(b"one")
    names = {name.partition("{")[0] for name in figures(alone)}
    assert names >= NAMES
    if alone.is_lessor:
        assert names >= {"lessor_leases", "lessor_lease_expiry_lateness_seconds_bucket", "lessor_connections"}
        assert names >= {"lessor_limit_reached_total", "lessor_disk_free_bytes"}


def test_what_dashboards_ask_for_is_there(alone: Subject) -> None:
    alone.put(b"one")
    alone.get(b"one")
    names = {name.partition("{")[0] for name in figures(alone)}
    # etcd 3.6 and later have these, and 3.4 and earlier that.
    newer = {"etcd_server_request_duration_seconds_bucket", "etcd_server_range_duration_seconds_bucket"}
    assert names >= ASKED_FOR | (newer if alone.is_lessor or alone.like(3, 7) else set())
    assert ("etcd_debugging_mvcc_db_total_size_in_bytes" in names) == alone.is_lessor


@pytest.mark.etcd
def test_each_family_of_etcd_is_there_or_left_out_for_a_reason() -> None:
    with running("etcd") as etcd, running("in-process") as lessor:
        if not etcd.like(3, 7):
            pytest.skip("the list is that of 3.7")
        for subject in (etcd, lessor):
            subject.put(b"one")
            subject.get(b"one")
        missing = names_of(page_of(etcd)) - names_of(page_of(lessor))
        assert [name for name in sorted(missing) if not LEFT_OUT.fullmatch(name)] == []
        assert [name for name in names_of(page_of(lessor)) if LEFT_OUT.fullmatch(name)] == []


def test_whole_numbers_have_no_fraction(alone: Subject) -> None:
    alone.put(b"whole")
    page = page_of(alone)
    assert re.search(r"^etcd_mvcc_put_total \d+$", page, re.MULTILINE)
    assert re.search(r'^etcd_debugging_lease_ttl_total_bucket\{le="\+Inf"\} \d+$', page, re.MULTILINE)
    assert re.search(r"^etcd_debugging_mvcc_watcher_total \d+$", page, re.MULTILINE)
    assert re.findall(r"^.* \d+\.0$", page, re.MULTILINE) == []


def test_each_family_has_its_kind_once_and_its_samples_behind_it(alone: Subject) -> None:
    alone.call(rpc.PutRequest())
    family = kind = ""
    seen = set()
    for line in page_of(alone).splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in seen
            seen.add(family)
        elif line.startswith("# TYPE "):
            _, _, named, kind = line.split(" ")
            assert named == family
        else:
            name = re.split(r"[{ ]", line)[0]
            ends = ("_bucket", "_sum", "_count") if kind in ("histogram", "summary") else ("",)
            assert name in {family + end for end in ends} | ({family} if kind == "summary" else set()), line
    assert len(seen) > 50


def let_one_end(subject: Subject) -> None:
    subject.grant(1)
    subject.pass_time(subject.min_ttl_s)


def test_leases(alone: Subject) -> None:
    def grant_two() -> None:
        ids[:] = [alone.grant(60), alone.grant(600)]

    ids: list[int] = []
    buckets = {f'{LEASES}ttl_total_bucket{{le="{bound}"}}': count for bound, count in ((32, 0), (64, 1), (1024, 2))}
    moved(alone, grant_two, {f"{LEASES}granted_total": 2, f"{LEASES}ttl_total_sum": 660, **buckets})
    renew = rpc.LeaseKeepAliveRequest(ID=ids[0])
    moved(alone, lambda: alone.do(renew), {f"{LEASES}renewed_total": 1})
    ended = {f"{LEASES}revoked_total": 1.0, "etcd_debugging_server_lease_expired_total": 0.0}
    moved(alone, lambda: alone.revoke(ids[0]), ended)
    both = {f"{LEASES}revoked_total": 1.0, "etcd_debugging_server_lease_expired_total": 1.0}
    moved(alone, lambda: let_one_end(alone), both)


def test_lessor_tells_how_many_leases_live_and_how_late_they_ended(alone: Subject) -> None:
    if not alone.is_lessor:
        pytest.skip("etcd does not tell")
    late = "lessor_lease_expiry_lateness_seconds_count"
    moved(alone, lambda: alone.grant(600), {"lessor_leases": 1})
    moved(alone, lambda: let_one_end(alone), {late: 1, "lessor_leases": 0})


def test_operations(alone: Subject) -> None:
    def each(**counts: float) -> Figures:
        return {f"{MVCC}{name}_total": counts.get(name, 0.0) for name in ("range", "put", "delete", "txn")}

    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"m/1"))
    other = rpc.RequestOp(request_put=rpc.PutRequest(key=b"m/2"))
    read = rpc.RequestOp(request_range=rpc.RangeRequest(key=b"m/1"))
    moved(alone, lambda: alone.put(b"m/0", b"value"), each(put=1))
    moved(alone, lambda: alone.get(b"m/0"), each(range=1))
    moved(alone, lambda: alone.do(rpc.TxnRequest(success=[put])), each(put=1))
    moved(alone, lambda: alone.do(rpc.TxnRequest(success=[put, other, read])), each(put=2, range=1, txn=1))
    moved(alone, lambda: alone.delete(b"m/", b"m0"), each(delete=1))
    moved(alone, lambda: alone.delete(b"m/none"), each(delete=1))


def test_the_end_of_a_lease_counts_its_keys(alone: Subject) -> None:
    lease_id = alone.grant()
    alone.put(b"on/1", lease=lease_id)
    alone.put(b"on/2", lease=lease_id)
    moved(alone, lambda: alone.revoke(lease_id), {f"{MVCC}delete_total": 2, f"{MVCC}txn_total": 1})


def test_keys_and_revisions(alone: Subject) -> None:
    key, value = b"k/new", b"12345"
    grows = {f"{DEBUG}keys_total": 1.0, f"{DEBUG}current_revision": 1.0}
    moved(alone, lambda: alone.put(key, value), grows)
    moved(alone, lambda: alone.put(key, value), {f"{DEBUG}keys_total": 0, f"{DEBUG}current_revision": 1})
    before = figures(alone)
    alone.compact(alone.revision)
    assert figures(alone)[f"{DEBUG}compact_revision"] == before[f"{DEBUG}current_revision"]
    assert before[f"{DEBUG}total_put_size_in_bytes"] >= len(key + value)


def test_watches(alone: Subject) -> None:
    with WatchPeer(alone) as peer:

        def watch_twice() -> None:
            for watch_id in (1, 2):
                peer.create(b"w/", watch_id=watch_id, range_end=b"w0")

        moved(alone, watch_twice, {f"{DEBUG}watcher_total": 2})
        assert figures(alone)[f"{DEBUG}watch_stream_total"] == 1
        moves = {f"{DEBUG}events_total": 2.0, f"{DEBUG}slow_watcher_total": 0.0, f"{DEBUG}pending_events_total": 0.0}
        moved(alone, lambda: alone.put(b"w/1"), moves)
    gone = figures(alone)
    give_up = time.monotonic() + 10
    while gone[f"{DEBUG}watcher_total"] or gone[f"{DEBUG}watch_stream_total"]:
        assert time.monotonic() < give_up
        gone = figures(alone)


@pytest.mark.parametrize("kind", RUNNERS)
def test_each_method_has_its_series_with_each_code_from_the_start(kind: str) -> None:
    with running(kind) as subject:
        first = figures(subject)
    codes = (
        *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
        *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
        *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
    )
    for service, method, form in (
        ("etcdserverpb.KV", "Put", "unary"),
        ("etcdserverpb.Watch", "Watch", "bidi_stream"),
        ("etcdserverpb.Maintenance", "Snapshot", "server_stream"),
        ("etcdserverpb.Auth", "RoleGrantPermission", "unary"),
        ("v3electionpb.Election", "Observe", "server_stream"),
        ("grpc.health.v1.Health", "Check", "unary"),
    ):
        labels = f'grpc_method="{method}",grpc_service="{service}",grpc_type="{form}"'
        if f"grpc_server_started_total{{{labels}}}" not in first and not subject.is_lessor:
            continue  # 3.5 registers some services behind the interceptor
        for name in ("started", "msg_received", "msg_sent"):
            assert first[f"grpc_server_{name}_total{{{labels}}}"] == 0
        for code in codes:
            assert first[f'grpc_server_handled_total{{grpc_code="{code}",{labels}}}'] == 0
    handled = [name for name in first if name.startswith("grpc_server_handled_total{")]
    started = [name for name in first if name.startswith("grpc_server_started_total{")]
    assert len(handled) == len(codes) * len(started) > 500


def test_how_long_requests_took(alone: Subject) -> None:
    if not alone.like(3, 7) and not alone.is_lessor:
        pytest.skip("new in 3.7")
    read = rpc.RequestOp(request_range=rpc.RangeRequest(key=b"d"))
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"d"))
    inner = rpc.RequestOp(request_txn=rpc.TxnRequest(success=[read]))
    each: list[tuple[str, bool, Message]] = [
        ("Put", True, rpc.PutRequest(key=b"d")),
        ("Range", True, rpc.RangeRequest(key=b"d")),
        ("Range", False, rpc.RangeRequest(key=b"d", revision=1 << 40)),
        ("DeleteRange", True, rpc.DeleteRangeRequest(key=b"d")),
        ("Txn", True, rpc.TxnRequest(success=[read], failure=[put])),
        ("Txn", True, rpc.TxnRequest(success=[inner])),
        ("ReadonlyTxn", True, rpc.TxnRequest(success=[read, read])),
        ("LeaseGrant", True, rpc.LeaseGrantRequest(TTL=600)),
        ("Compaction", True, rpc.CompactionRequest(revision=alone.revision)),
    ]
    kinds = ("Put", "Range", "DeleteRange", "Txn", "ReadonlyTxn", "LeaseGrant", "Compaction")
    for kind, fine, request in each:
        expected = {
            f'etcd_server_request_duration_seconds_{end}{{{labels}success="{ok}",type="{name}"}}': float(
                (name, ok) == (kind, str(fine).lower())
            )
            for name in kinds
            for ok in ("true", "false")
            for end, labels in (("count", ""), ("bucket", 'le="+Inf",'))
        }
        moved(alone, lambda request=request: alone.call(request), expected)  # type: ignore[misc]
    ranges = 'etcd_server_range_duration_seconds_count{success="true"}'
    moved(alone, lambda: alone.get(b"d"), {ranges: 1})


def test_calls(alone: Subject) -> None:
    labels = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    moved(
        alone,
        lambda: alone.put(b"call"),
        {
            f"grpc_server_started_total{{{labels}}}": 1,
            f"grpc_server_msg_received_total{{{labels}}}": 1,
            f"grpc_server_msg_sent_total{{{labels}}}": 1,
            f'grpc_server_handled_total{{grpc_code="OK",{labels}}}': 1,
            'etcd_server_client_requests_total{client_api_version="unknown",type="unary"}': 1,
        },
    )
    refused = f'grpc_server_handled_total{{grpc_code="InvalidArgument",{labels}}}'
    moved(alone, lambda: alone.call(rpc.PutRequest()), {refused: 1, f"grpc_server_msg_received_total{{{labels}}}": 1})


def test_messages_of_a_stream(alone: Subject) -> None:
    labels = 'grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"'

    def renew_thrice() -> None:
        talk = alone.keepalive()
        talk.send(*(rpc.LeaseKeepAliveRequest(ID=1) for _ in range(3)))
        talk.half_close()
        talk.read_all()

    end = not alone.is_lessor and alone.like(3, 6)  # which counts the end of the requests as one more
    counted = {f"grpc_server_msg_received_total{{{labels}}}": 3 + end, f"grpc_server_msg_sent_total{{{labels}}}": 3}
    moved(alone, renew_thrice, {f"grpc_server_started_total{{{labels}}}": 1, **counted})


def test_commits(alone: Subject) -> None:
    before = figures(alone)
    alone.put(b"commit")
    after = figures(alone)
    if alone.is_lessor:  # etcd commits to its backend ten times a second
        for name in ("etcd_disk_backend_commit", "etcd_disk_wal_fsync"):
            count, total = f"{name}_duration_seconds_count", f"{name}_duration_seconds_sum"
            assert after[count] > before[count]  # the served time is saved now and then, too
            assert after[total] > before[total]
    assert after["etcd_server_proposals_committed_total"] > before["etcd_server_proposals_committed_total"]


def test_health_checks_and_alarms(alone: Subject) -> None:
    moved(alone, lambda: alone.request("GET", "/health"), {"etcd_server_health_success": 1})
    member_id = alone.do(rpc.RangeRequest(key=b"a")).header.member_id
    alarm = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=member_id, alarm=rpc.NOSPACE)
    shown = f'etcd_debugging_server_alarms{{alarm_type="NOSPACE",server_id="{member_id:x}"}}'
    moved(alone, lambda: alone.do(alarm), {shown: 1} if alone.like(3, 6) else {})
    moved(alone, lambda: alone.request("GET", "/health"), {"etcd_server_health_failures": 1})
    alarm.action = rpc.AlarmRequest.DEACTIVATE
    alone.do(alarm)


# --- ports of their own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OURS)
def test_metrics_urls_serve_the_pages_alone(kind: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with running(kind, [f"--listen-metrics-urls=http://{metrics}"]) as subject:
        subject.put(b"one")
        subject.server.client_url = f"http://{metrics}"  # where `request` goes; gRPC is connected already
        for path in ("/metrics", "/health", "/livez", "/readyz", "/readyz/data_corruption"):
            assert subject.request("GET", path).status == 200
        assert b"\netcd_mvcc_put_total 1\n" in subject.request("GET", "/metrics").body
        for verb, path in (("GET", "/version"), ("POST", "/v3/kv/range"), ("GET", "/v3/watch"), ("GET", "/")):
            assert subject.request(verb, path).status == 404
