# SPDX-License-Identifier: Apache-2.0
"""The model is right: it answers what a real etcd answers. All that is proved with the model rests on this."""

from typing import Any

import pytest
from hypothesis import given, settings

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.against_model import AGAINST_A_SERVER, REAL_TIME_SEQUENCES, Party, Session, differences_of
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.grpc_peer import GrpcPeer
from tests.property.strategies import EDGES, INT64_MIN, WARM_UP

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


@given(steps=REAL_TIME_SEQUENCES)
@settings(AGAINST_A_SERVER, max_examples=60)
def test_every_reply_is_the_models(etcd_server: EtcdServer, etcd: GrpcPeer, steps: list[Any]) -> None:
    Session([Party(etcd, differences_of(etcd_server))], etcd_server.min_lease_ttl_s).run(steps)


@pytest.mark.parametrize("edge", EDGES)
def test_edges(etcd_server: EtcdServer, etcd: GrpcPeer, edge: str) -> None:
    session = Session([Party(etcd, differences_of(etcd_server))], etcd_server.min_lease_ttl_s)
    session.run([*WARM_UP, EDGES[edge], rpc.PutRequest(key=b"b", value=b"z")])


def test_short_ttls_are_raised(etcd_server: EtcdServer, etcd: GrpcPeer) -> None:
    session = Session([Party(etcd)], etcd_server.min_lease_ttl_s)
    for ttl_s in (0, 1, 2, 3, -1, INT64_MIN):
        session.run([rpc.LeaseGrantRequest(ID=9, TTL=ttl_s), rpc.LeaseRevokeRequest(ID=9)])
