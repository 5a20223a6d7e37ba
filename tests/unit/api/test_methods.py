# SPDX-License-Identifier: Apache-2.0
"""The method table: gRPC paths, HTTP routes with their aliases, messages and streaming kinds."""

import pytest

from lessor.api.methods import BY_PATH, BY_ROUTE, METHODS, ROUTE_PREFIXES, SERVICES, Method
from lessor.api.proto import election_pb2, rpc_pb2

HEALTH = "grpc.health.v1.Health"


def names(methods: list[Method]) -> set[str]:
    return {method.path for method in methods}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/etcdserverpb.Lease/LeaseGrant", "/v3/lease/grant"),
        ("/etcdserverpb.Lease/LeaseRevoke", "/v3/lease/revoke"),
        ("/etcdserverpb.Lease/LeaseRevoke", "/v3/kv/lease/revoke"),
        ("/etcdserverpb.Lease/LeaseKeepAlive", "/v3/lease/keepalive"),
        ("/etcdserverpb.Lease/LeaseTimeToLive", "/v3/lease/timetolive"),
        ("/etcdserverpb.Lease/LeaseTimeToLive", "/v3/kv/lease/timetolive"),
        ("/etcdserverpb.Lease/LeaseLeases", "/v3/lease/leases"),
        ("/etcdserverpb.Lease/LeaseLeases", "/v3/kv/lease/leases"),
        ("/etcdserverpb.KV/Range", "/v3/kv/range"),
        ("/etcdserverpb.KV/Compact", "/v3/kv/compaction"),
        ("/etcdserverpb.Watch/Watch", "/v3/watch"),
        ("/etcdserverpb.Maintenance/MoveLeader", "/v3/maintenance/transfer-leadership"),
        ("/etcdserverpb.Auth/UserChangePassword", "/v3/auth/user/changepw"),
        ("/v3lockpb.Lock/Lock", "/v3/lock/lock"),
        ("/v3electionpb.Election/Observe", "/v3/election/observe"),
        ("/lessorpb.Leases/List", "/v3/lessor/leases/list"),
        ("/lessorpb.Leases/Watch", "/v3/lessor/leases/watch"),
    ],
)
def test_a_route_and_its_old_prefix_lead_to_the_method(path: str, route: str) -> None:
    assert BY_ROUTE[route] is BY_PATH[path]
    assert BY_ROUTE[route.replace("/v3/", "/v3beta/")] is BY_PATH[path]


def test_routes_that_etcd_does_not_have() -> None:
    for route in ("/v3/kv/lease/grant", "/v3/kv/lease/keepalive", "/v3alpha/lease/grant", "/lease/grant"):
        assert route not in BY_ROUTE


def test_every_rpc_for_clients_but_health_and_range_stream_has_a_route() -> None:
    assert names([method for method in METHODS if not method.routes]) == {
        "/etcdserverpb.KV/RangeStream",
        f"/{HEALTH}/Check",
        f"/{HEALTH}/Watch",
        "/lessorpb.Following/Follow",
    }


def test_no_route_leads_to_two_methods() -> None:
    routes = [route for method in METHODS for route in method.routes]
    assert len(routes) == len(set(routes))
    assert len(BY_ROUTE) == len(routes) * len(ROUTE_PREFIXES)


def test_each_service_of_a_single_etcd_is_there_and_our_own() -> None:
    assert {
        *(f"etcdserverpb.{name}" for name in ("KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth")),
        *("v3lockpb.Lock", "v3electionpb.Election", HEALTH, "lessorpb.Leases", "lessorpb.Following"),
    } == SERVICES
    assert {method.service for method in METHODS} == SERVICES


def test_streaming_kinds() -> None:
    both_ways = [method for method in METHODS if method.client_streaming and method.server_streaming]
    assert names(both_ways) == {
        "/etcdserverpb.Watch/Watch",
        "/etcdserverpb.Lease/LeaseKeepAlive",
        "/lessorpb.Following/Follow",
    }
    answers_only = [method for method in METHODS if method.server_streaming and not method.client_streaming]
    assert names(answers_only) == {
        "/etcdserverpb.KV/RangeStream",
        "/etcdserverpb.Maintenance/Snapshot",
        "/v3electionpb.Election/Observe",
        f"/{HEALTH}/Watch",
        "/lessorpb.Leases/Watch",
    }
    assert not [method for method in METHODS if method.client_streaming and not method.server_streaming]
    assert all(method.unary != (method.client_streaming or method.server_streaming) for method in METHODS)


def test_a_method_carries_the_classes_that_the_modules_have() -> None:
    """Not merely the same descriptors: a message built from the module must pass for one of the method's."""
    grant = BY_PATH["/etcdserverpb.Lease/LeaseGrant"]
    assert grant.request is rpc_pb2.LeaseGrantRequest
    assert grant.response is rpc_pb2.LeaseGrantResponse
    assert (grant.service, grant.name) == ("etcdserverpb.Lease", "LeaseGrant")
    assert BY_PATH["/v3electionpb.Election/Observe"].request is election_pb2.LeaderRequest


def test_methods_are_compared_by_identity() -> None:
    assert len(set(METHODS)) == len(METHODS) == len(BY_PATH)
