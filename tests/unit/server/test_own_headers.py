# SPDX-License-Identifier: Apache-2.0
"""Replies of a leader with the member id of the server that passes them on."""

from typing import Any

import pytest

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from lessor.server.following.own_headers import OwnHeaders

OURS = 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize("theirs", [0, 1, 0x7F, 0x1234_5678_9ABC_DEF0])
@pytest.mark.parametrize("revision", [0, 1, 1 << 62])
def test_all_but_the_member_id_stays(theirs: int, revision: int) -> None:
    headers = OwnHeaders(OURS)
    header = rpc.ResponseHeader(cluster_id=1 << 63, member_id=theirs, revision=revision, raft_term=3)
    for lease_id in (7, 8):  # the second time the header is known
        reply = rpc.LeaseKeepAliveResponse(header=header, ID=lease_id, TTL=60)
        own = rpc.LeaseKeepAliveResponse.FromString(headers.own(reply.SerializeToString()))
        assert own.header.member_id == OURS
        own.header.member_id = theirs
        assert own == reply
    empty = rpc.LeaseKeepAliveResponse(header=rpc.ResponseHeader(), ID=7)  # not the header that is remembered first
    assert (
        rpc.LeaseKeepAliveResponse.FromString(OwnHeaders(OURS).own(empty.SerializeToString())).header.member_id == OURS
    )


def test_a_reply_without_a_header_is_left_alone() -> None:
    for reply in (rpc.LeaseKeepAliveResponse(ID=7), rpc.LeaseKeepAliveResponse()):
        assert OwnHeaders(OURS).own(reply.SerializeToString()) == reply.SerializeToString()


def test_the_header_is_the_first_field_of_every_reply() -> None:
    """Where it is not, the first field must not be taken for one: such calls are not passed on."""
    others = set()
    for method in METHODS:
        fields: Any = method.response.DESCRIPTOR.fields_by_number
        if 1 not in fields or fields[1].message_type is not rpc.ResponseHeader.DESCRIPTOR:
            others.add(f"{method.service}/{method.name}")
    assert others == {
        "etcdserverpb.KV/RangeStream",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "lessorpb.Following/Follow",
    }
