# SPDX-License-Identifier: Apache-2.0
"""The model is right: it answers what a real etcd answers. All that is proved with the model rests on this."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.against_model import LONG_TTLS_S, Session, differences_of
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.grpc_peer import GrpcPeer
from tests.property.strategies import INT64_MIN, sequences

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

SEQUENCES = sequences(ttls=LONG_TTLS_S, time_passes=False)
# The server outlives the examples on purpose (each one empties it), and its speed is not what is tested.
AGAINST_A_SERVER = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@given(steps=SEQUENCES)
@settings(AGAINST_A_SERVER, max_examples=100)
def test_every_reply_is_the_models(etcd_server: EtcdServer, etcd: GrpcPeer, steps: list[Any]) -> None:
    Session(etcd, etcd_server.min_lease_ttl_s, differences_of(etcd_server)).run(steps)


def test_short_ttls_are_raised(etcd_server: EtcdServer, etcd: GrpcPeer) -> None:
    session = Session(etcd, etcd_server.min_lease_ttl_s)
    for ttl_s in (0, 1, 2, 3, -1, INT64_MIN):
        session.run([rpc.LeaseGrantRequest(ID=9, TTL=ttl_s), rpc.LeaseRevokeRequest(ID=9)])
