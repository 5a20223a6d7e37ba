# SPDX-License-Identifier: Apache-2.0
"""A server that follows gives snapshots itself, in both forms: of what the leader has written."""

import base64
import contextlib
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import etcd_file_pb2, mvcc_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import snapshot_forms
from lessor.base.errors import Code
from lessor.durable import snapshot_file
from lessor.testing.server import InProcessServer
from tests import bolt
from tests.conformance.grpc_peer import GrpcPeer
from tests.whole.test_followers import posted, revision_of, two
from tests.whole.test_on_a_shared_log import eventually, put

SNAPSHOT = BY_PATH["/etcdserverpb.Maintenance/Snapshot"]
FIELD = snapshot_forms.FIELD
LEASE, TTL_S = 7, 600


def by_grpc(server: InProcessServer, form: str) -> bytes:
    with GrpcPeer(server.address) as peer:
        call: Any = peer.channel.unary_stream(SNAPSHOT.path, None, rpc.SnapshotResponse.FromString)
        return b"".join(reply.blob for reply in call(b"", timeout=20, metadata=((FIELD, form),)))


def by_json(server: InProcessServer, form: str) -> bytes:
    lines = posted(server, "/v3/maintenance/snapshot", {}, {f"Grpc-Metadata-{FIELD}": form})
    return b"".join(base64.b64decode(line["result"].get("blob", "")) for line in lines)


@pytest.mark.parametrize("save", [by_grpc, by_json])
def test_a_follower_gives_a_snapshot_of_what_the_leader_has_written(tmp_path: Path, save: Any) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as other:
        other.call(rpc.LeaseGrantRequest(ID=LEASE, TTL=TTL_S))
        for number in range(20):
            written: Any = other.call(put(b"k%d" % number, b"v"))
        eventually(lambda: revision_of(follower) == written.header.revision)
        etcds, ours = save(follower, "etcd"), save(follower, "lessor")
        assert follower.call(lambda: follower.server.core.metrics.handled[SNAPSHOT, Code.OK].n) == 2
        assert leader.call(lambda: leader.server.core.metrics.started[SNAPSHOT].n) == 0  # answered here
    expected = [b"k%d" % number for number in range(20)]
    found = bolt.buckets(etcds[:-32])
    assert [mvcc_pb2.KeyValue.FromString(value).key for _, value in found[b"key"]] == expected
    ((key, value),) = found[b"lease"]
    lease = etcd_file_pb2.Lease.FromString(value)
    assert (key, lease.ID, lease.TTL) == (struct.pack(">q", LEASE), LEASE, TTL_S)
    assert TTL_S - 60 < (lease.RemainingTTL or TTL_S) <= TTL_S
    saved = tmp_path / "saved.db"
    saved.write_bytes(ours)
    snapshot_file.check(saved)
    with contextlib.closing(sqlite3.connect(saved)) as tables:
        keys = [key for (key,) in tables.execute("SELECT key FROM event ORDER BY revision")]
    assert keys == expected
