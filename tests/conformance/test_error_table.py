# SPDX-License-Identifier: Apache-2.0
"""The table of etcd's errors, row by row: each text is what some test of this folder wants a server to say, or one
that a server alone never says, and why.

Here are also the rows that no other file has a place for.
"""

from pathlib import Path
from typing import Any

import pytest

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.errors import Code, ErrorText
from tests.conformance.raw_h2 import RawH2, framed
from tests.conformance.subject import Subject
from tests.metrics_page import fresh

SAID = {
    Code.INVALID_ARGUMENT: (
        *("key is not provided", "key not found", "value is provided", "lease is provided", "invalid sort option"),
        *("too many operations in txn request", "duplicate key given in txn request", "invalid client api version"),
        *("given member URLs are invalid", "request is too large", "user name is empty", "role name is empty"),
        *("authentication failed, invalid user ID or password", "permission not given", "invalid auth management"),
        *("revision of auth store is old", "wrong downgrade target version format"),
        *("invalid downgrade target version",),
    ),
    Code.OUT_OF_RANGE: (
        *("mvcc: required revision has been compacted", "mvcc: required revision is a future revision"),
        *("too large lease TTL",),
    ),
    Code.RESOURCE_EXHAUSTED: ("mvcc: database space exceeded",),
    Code.NOT_FOUND: ("requested lease not found", "member not found"),
    Code.FAILED_PRECONDITION: (
        *("lease already exists", "Peer URLs already exists", "can only promote a learner member"),
        *("too many learner members in cluster", "root user does not exist", "root user does not have root role"),
        *("user name already exists", "user name not found", "role name already exists", "role name not found"),
        *("role is not granted to the user", "permission is not granted to the role", "bad leader transferee"),
        *("authentication is not enabled", "cluster has a downgrade job in progress"),
    ),
    Code.PERMISSION_DENIED: ("permission denied",),
    Code.UNAUTHENTICATED: ("invalid auth token",),
    Code.UNAVAILABLE: ("server stopped",),
    Code.DATA_LOSS: ("corrupt cluster",),
    # The table has other codes for these two; this is what reaches the wire.
    Code.UNKNOWN: ("re-configuration failed due to not enough started members", "too many requests"),
}
# What one member has no occasion to say.
UNSAID = {
    "it is the only member, and takes no second one in": (
        *("member ID already exist", "can only promote a learner member which is in sync with leader"),
        *("rpc not supported for learner", "cluster ID mismatch", "unhealthy cluster"),
    ),
    "it leads as long as it lives": (
        *("not leader", "no leader", "leader changed", "request timed out, possibly due to previous leader failure"),
        *("request timed out, possibly due to connection lost",),
    ),
    "a reply waits for the disk; a disk that fails ends the server": (
        *("request timed out", "request timed out, waiting for the applied index took too long"),
    ),
    "all that it serves it can do from the start": ("not capable", "cluster version not found during downgrade"),
    "etcd 3.6 does not say it either: cancelling nothing succeeds": ("no inflight downgrade job",),
    "whom it is meant for is gone: a call that its caller cancelled, or its connection": (
        *("watch canceled", "request canceled"),
    ),
}
OTHERS = "".join(
    path.read_text()
    for folder in ("conformance", "unit", "whole")
    for path in sorted((Path(__file__).parents[1] / folder).rglob("*.py"))
    if path != Path(__file__)
)


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SAID.items() for text in texts])
def test_a_row(code: Code, text: str) -> None:
    rows = [row for row in vars(errors).values() if isinstance(row, ErrorText) and row.message == f"etcdserver: {text}"]
    assert [row.code for row in rows] == [code]
    assert text in OTHERS or text in ("invalid client api version",), "no test wants a server to say it"


# Errors that etcd does not have, because it does not have the limits; docs/compatibility.md names each.
OWN = (errors.SNAPSHOT_NOT_READ, errors.NAME_TOO_LONG)


def test_every_row_of_ours_is_in_the_table() -> None:
    known = {f"etcdserver: {text}" for texts in (*SAID.values(), *UNSAID.values()) for text in texts}
    for name, row in vars(errors).items():
        if isinstance(row, ErrorText) and row.message.startswith("etcdserver: ") and row is not errors.UNKNOWN_METHOD:
            assert row.message in known or row in OWN, name


def test_an_error_that_etcd_does_not_have_is_named_as_a_difference() -> None:
    differences = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    for row in OWN:
        assert row.message.removeprefix("etcdserver: ") in differences


@pytest.mark.parametrize("version", [b"\xff", b"3.6\xc3", b"\xed\xa0\x80"])
@pytest.mark.parametrize("name", ["Range", "LeaseKeepAlive"])
def test_a_client_api_version_that_is_no_text(subject: Subject, version: Any, name: str) -> None:
    if not subject.like(3, 6):
        pytest.skip("3.5.1 does not outlive it")
    method = next(method for method in METHODS if method.name == name)
    request = rpc.RangeRequest(key=b"a") if method.unary else rpc.LeaseKeepAliveRequest(ID=1)
    with RawH2(subject.server.address) as raw:
        refused = raw.call(method.path, framed(request), client_api_version=version)
        assert refused.status == (3, "etcdserver: invalid client api version")
        assert raw.call(method.path, framed(request), client_api_version="3.6 \u00e9").status == (0, "")


def test_versions_that_clients_make_up_take_bounded_memory(subject: Subject) -> None:
    if not subject.is_lessor:
        pytest.skip("etcd keeps a count for each")
    request = framed(rpc.RangeRequest(key=b"a"))
    with RawH2(subject.server.address) as raw:
        for number in range(200):
            assert raw.call("/etcdserverpb.KV/Range", request, client_api_version=f"v{number}").status[0] == 0
    shown = fresh(lambda: subject.request("GET", "/metrics").body.decode())
    counts = [line for line in shown.splitlines() if line.startswith("etcd_server_client_requests_total{")]
    assert len(counts) <= 66
    assert any('client_api_version="other"' in line for line in counts)
