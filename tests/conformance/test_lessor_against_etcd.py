# SPDX-License-Identifier: Apache-2.0
"""Lessor, as its users run it, answers what the model and a real etcd answer to the same requests."""

from typing import Any

import pytest
from hypothesis import given, settings

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.against_model import AGAINST_A_SERVER, REAL_TIME_SEQUENCES, Party, Session, differences_of
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.grpc_peer import GrpcPeer
from tests.conformance.lessor_server import LessorServer
from tests.property.strategies import INT64_MIN

pytestmark = pytest.mark.slow


@given(steps=REAL_TIME_SEQUENCES)
@settings(AGAINST_A_SERVER, max_examples=60)
def test_every_reply_is_the_models(lessor_server: LessorServer, lessor: GrpcPeer, steps: list[Any]) -> None:
    Session([Party(lessor)], lessor_server.min_lease_ttl_s).run(steps)


@pytest.mark.etcd
@given(steps=REAL_TIME_SEQUENCES)
@settings(AGAINST_A_SERVER, max_examples=30)
def test_every_reply_is_etcds(etcd_server: EtcdServer, etcd: GrpcPeer, lessor: GrpcPeer, steps: list[Any]) -> None:
    # Where this etcd is older than 3.6, which Lessor follows, the table of differences says so.
    Session([Party(etcd, differences_of(etcd_server)), Party(lessor)], etcd_server.min_lease_ttl_s).run(steps)


def test_short_ttls_are_raised(lessor_server: LessorServer, lessor: GrpcPeer) -> None:
    session = Session([Party(lessor)], lessor_server.min_lease_ttl_s)
    for ttl_s in (0, 1, 2, 3, -1, INT64_MIN):
        session.run([rpc.LeaseGrantRequest(ID=9, TTL=ttl_s), rpc.LeaseRevokeRequest(ID=9)])
