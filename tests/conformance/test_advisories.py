# SPDX-License-Identifier: Apache-2.0
"""What etcd's security advisories of 2024 to 2026 made possible is impossible here, and in an etcd that has the fixes.

docs/security.md has a line for each: its meaning, and which of these tests holds it closed.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.limits import TXN_OPS_MAX
from tests.conformance.auth_peer import BAD_TOKEN, BOTH, CHEAP, DENIED, NOBODY, READ, WRITE, As, enable_auth
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, Subject, end_of, new_lease_id, running, server_of
from tests.conformance.tls_server import Pki
from tests.ports import free_port

NO_SPACE = Failure(8, "etcdserver: mvcc: database space exceeded")
DEPTHS = (0, 1, 2, 7, 30)


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


def nested(operation: rpc.RequestOp, depth: int, branch: str) -> rpc.TxnRequest:
    """The operation in a branch of a txn in that branch of a txn ..., `depth` txns down."""
    parts: dict[str, Any] = {branch: [operation]}
    for _ in range(depth):
        parts = {branch: [op(request_txn=rpc.TxnRequest(**parts))]}
    return rpc.TxnRequest(**parts)


# --- GHSA-q8m4-xhhv-38mg ----------------------------------------------------------------------------------------------


def test_without_a_good_token_members_alarms_leases_and_compaction_are_out_of_reach(newest: As, prefix: bytes) -> None:
    lease_id, other_id = new_lease_id(), new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    newest.do(rpc.PutRequest(key=prefix, value=b"1", lease=lease_id))
    first = newest.do(rpc.PutRequest(key=prefix, value=b"2", lease=lease_id)).header.revision
    calls = (
        rpc.MemberListRequest(),
        rpc.AlarmRequest(),
        rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.NOSPACE),
        rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.CORRUPT),
        rpc.LeaseGrantRequest(ID=other_id, TTL=600),
        rpc.LeaseRevokeRequest(ID=lease_id),
        rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True),
        rpc.LeaseLeasesRequest(),
        rpc.CompactionRequest(revision=first),
    )
    routes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v3/cluster/member/list", {}),
        ("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"}),
        ("/v3/lease/grant", {"ID": other_id, "TTL": 600}),
        ("/v3/lease/revoke", {"ID": lease_id}),
        ("/v3/lease/keepalive", {"ID": lease_id}),
        ("/v3/kv/compaction", {"revision": first}),
    )
    for who, why in ((As(newest.subject), NOBODY), (As(newest.subject, "QEeaTIfXTbQcSJnx.1"), BAD_TOKEN)):
        for call in calls:
            assert who.call(call) == why, call
        for path, body in routes:
            assert who.post(path, body).status in (400, 401), path
        assert who.keep_alive(lease_id) == [why]
    assert newest.do(rpc.AlarmRequest()).alarms == []
    assert other_id not in [lease.ID for lease in newest.do(rpc.LeaseLeasesRequest()).leases]
    assert list(newest.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == [prefix]
    assert newest.do(rpc.RangeRequest(key=prefix, revision=first - 1)).kvs[0].value == b"1"  # it is not compacted


def test_a_user_without_rights_raises_no_alarm_compacts_nothing_and_ends_no_lease(newest: As, prefix: bytes) -> None:
    lease_id = new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    newest.do(rpc.PutRequest(key=prefix, lease=lease_id))
    user = newest.user_with((BOTH, prefix + b"/", b""))
    for request in (
        rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.CORRUPT),
        rpc.CompactionRequest(revision=1),
        rpc.LeaseRevokeRequest(ID=lease_id),
    ):
        assert user.call(request) == DENIED
    assert user.keep_alive(lease_id) == [DENIED]
    assert newest.do(rpc.AlarmRequest()).alarms == []


# --- GHSA-rfx7-8w68-q57q, GHSA-x35m-3gp4-4fh5 -------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["success", "failure"])
def test_no_depth_of_txns_gets_around_a_right(newest: As, prefix: bytes, branch: str) -> None:
    theirs, mine = prefix + b"theirs", prefix + b"mine"
    newest.do(rpc.PutRequest(key=theirs, value=b"secret"))
    user = newest.user_with((BOTH, mine, b""))
    operations = (
        op(request_range=rpc.RangeRequest(key=theirs)),
        op(request_put=rpc.PutRequest(key=theirs, value=b"x")),
        op(request_delete_range=rpc.DeleteRangeRequest(key=prefix, range_end=end_of(prefix))),
        op(request_txn=rpc.TxnRequest(compare=[rpc.Compare(key=theirs, target=rpc.Compare.VALUE, value=b"secret")])),
    )
    for depth in DEPTHS:
        for operation in operations:
            assert user.call(nested(operation, depth, branch)) == DENIED, (depth, operation)
        user.do(nested(op(request_put=rpc.PutRequest(key=mine)), depth, branch))
    (kv,) = newest.do(rpc.RangeRequest(key=theirs)).kvs
    assert (kv.value, kv.version) == (b"secret", 1)


@pytest.mark.parametrize("branch", ["success", "failure"])
def test_a_put_in_a_txn_needs_the_rights_of_a_put(newest: As, prefix: bytes, branch: str) -> None:
    """To see the value before is to read it; to hang a key on a lease is to write the lease's other keys."""
    mine, theirs, lease_id = prefix + b"mine", prefix + b"theirs", new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    newest.do(rpc.PutRequest(key=theirs, lease=lease_id))
    newest.do(rpc.PutRequest(key=mine, value=b"secret"))
    writer = newest.user_with((WRITE, mine, b""))
    for depth in DEPTHS:
        for put in (rpc.PutRequest(key=mine, prev_kv=True), rpc.PutRequest(key=mine, lease=lease_id)):
            assert writer.call(nested(op(request_put=put), depth, branch)) == DENIED, (depth, put)
    assert newest.do(rpc.RangeRequest(key=mine)).kvs[0].version == 1
    assert list(newest.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == [theirs]


# --- GHSA-xg4h-6gfc-h4m8 ----------------------------------------------------------------------------------------------


def test_the_right_to_read_one_key_lets_watch_that_key_alone(newest: As, prefix: bytes) -> None:
    key, later = prefix + b"a", prefix + b"b"
    user = newest.user_with((READ, key, b""))
    for range_end in (b"\0", key + b"\0\0", later, end_of(key)):
        for options in ({}, {"start_revision": 1}, {"prev_kv": True}):
            stream, reply = user.watch(key, range_end, **options)
            assert reply.canceled, range_end
            assert reply.cancel_reason.endswith(DENIED.text)
            stream.cancel()
        assert user.call(rpc.RangeRequest(key=key, range_end=range_end)) == DENIED
    stream, reply = user.watch(key)
    assert (reply.created, reply.canceled) == (True, False)
    newest.do(rpc.PutRequest(key=later, value=b"unseen"))
    newest.do(rpc.PutRequest(key=key, value=b"seen"))
    assert [event.kv.value for event in stream.read().events] == [b"seen"]
    stream.cancel()


# --- GHSA-3wh4-j44w-pg92 ----------------------------------------------------------------------------------------------


def answers(port: int, context: ssl.SSLContext) -> bool:
    """Whether a client with this context gets an answer in HTTP, whatever it says."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            h2 = secure.selected_alpn_protocol() == "h2"
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) if h2 else GET)
            return secure.recv(1_000) != b""
    except OSError:  # an alert too
        return False


GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.slow
def test_a_revoked_certificate_opens_no_listener(tmp_path: Path) -> None:
    """gRPC and HTTP share each listener here; there may be several, and one for the metrics."""
    pki, first, second, metrics = Pki(tmp_path), free_port(), free_port(), free_port()
    server = server_of("lessor")
    server.flags += [
        f"--listen-client-urls={server.client_url},https://127.0.0.1:{first},https://127.0.0.1:{second}",
        *(f"--listen-metrics-urls=https://127.0.0.1:{metrics}", "--client-cert-auth"),
        *(f"--cert-file={pki.server.certificate}", f"--key-file={pki.server.key}"),
        *(f"--trusted-ca-file={pki.folder}/ca.pem", f"--client-crl-file={pki.folder}/crl.der"),
    ]
    with server:
        for port in (first, second, metrics):
            for protocol in ("h2", "http/1.1"):
                contexts = [pki.context("alice"), pki.context("revoked"), pki.context()]
                for context in contexts:
                    context.set_alpn_protocols([protocol])
                served = port != metrics or protocol != "h2"  # metrics are pages only
                assert [answers(port, context) for context in contexts] == [served, False, False], (port, protocol)


# --- without a number: pull requests 22134 and 22386 of etcd ----------------------------------------------------------


@pytest.fixture(params=RUNNERS)
def small(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param, [*CHEAP, f"--quota-backend-bytes={8 * 1024 * 1024}"]) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["success", "failure"])
def test_puts_in_txns_in_txns_count_for_the_quota(small: Subject, branch: str) -> None:
    compare = [] if branch == "success" else [rpc.Compare(key=b"none", target=rpc.Compare.VERSION, version=1)]
    put = op(request_put=rpc.PutRequest(key=b"fill", value=b"x" * 500_000))
    request = rpc.TxnRequest(compare=compare, **{branch: [op(request_txn=rpc.TxnRequest(success=[put]))]})
    give_up_s = time.monotonic() + 60
    while (reply := small.call(request)) != NO_SPACE:
        assert not isinstance(reply, Failure), reply
        assert time.monotonic() < give_up_s
    assert [alarm.alarm for alarm in small.do(rpc.AlarmRequest()).alarms] == [rpc.NOSPACE]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("alarm", [rpc.NOSPACE, rpc.CORRUPT])
def test_while_an_alarm_is_up_rights_count_as_before(kind: str, alarm: int) -> None:
    with running(kind, CHEAP) as subject:
        if not subject.like(3, 6):
            pytest.skip("an etcd that forgets rights then")
        root = enable_auth(subject)
        lease_id = new_lease_id()
        root.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
        root.do(rpc.PutRequest(key=b"secret", lease=lease_id))
        user = root.user_with((BOTH, b"own", b""))
        activate: Any = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE)
        activate.alarm = alarm
        root.do(activate)
        for request in (
            rpc.RangeRequest(key=b"secret"),
            rpc.DeleteRangeRequest(key=b"secret"),
            rpc.LeaseRevokeRequest(ID=lease_id),
            rpc.AuthDisableRequest(),
            rpc.AuthUserAddRequest(name="eve", password="x"),
            rpc.AuthUserGrantRoleRequest(user=user.name, role="root"),
        ):
            assert isinstance(user.call(request), Failure), request
            assert isinstance(As(subject).call(request), Failure), request
        activate.action = rpc.AlarmRequest.DEACTIVATE
        activate.memberID = root.do(rpc.AlarmRequest()).alarms[0].memberID
        root.do(activate)
        assert root.do(rpc.RangeRequest(key=b"secret")).count == 1
        assert list(root.do(rpc.AuthUserListRequest()).users) == sorted(["root", user.name])
        assert root.do(rpc.AuthStatusRequest()).enabled


# --- without a number: tokens in the log (pull request 21993 of etcd) -------------------------------------------------


def test_no_token_reaches_the_log() -> None:
    with running("lessor", [*CHEAP, "--log-level=debug"]) as subject:
        root = enable_auth(subject)
        bad = ("eyJhbGciOiJSUzI1NiJ9.eyJ1c2VybmFtZSI6InJvb3QifQ.c2lnbmF0dXJl", "Bearer nonsense.1")
        for token in bad:
            assert As(subject, token).call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN
            As(subject, token).post("/v3/kv/range", {"key": "YQ=="})
        server: Any = subject.server
        log = (server.folder / "log").read_text()
        assert not any(token in log for token in (*bad, root.token or ""))


def test_the_depths_stay_within_the_limit_of_operations() -> None:
    assert max(DEPTHS) < TXN_OPS_MAX
