# SPDX-License-Identifier: Apache-2.0
"""The Cluster service of a server that leads, alone or with others that follow it.

Laws
- The members are this server and those that follow it now: nobody has to add or remove them.
- A request that cannot be carried out is refused in etcd's words, so that clients show their usual errors. A member
  that could never start is not added: etcd would add it, and then wait for it with every write.
- The member has no address for peers. Until MemberUpdate gives it one, its client URLs are reported as its peer URLs,
  too: a server answers there, and tools that look at a member's first peer URL find one.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.server.loop.core import Core


def _members(core: Core) -> list[rpc_pb2.Member]:
    own = rpc_pb2.Member(
        ID=core.machine.identity.member_id,
        name=core.options.name,
        peerURLs=_peer_urls(core),
        clientURLs=core.options.advertise_client_urls,
    )
    others = {
        each.member_id: rpc_pb2.Member(
            ID=each.member_id, name=each.name, peerURLs=sorted(each.urls), clientURLs=each.urls
        )
        for each in core.followers.values()
    }
    return sorted([own, *others.values()], key=lambda member: member.ID)


def _peer_urls(core: Core) -> list[str]:
    return list(core.machine.peer_urls or sorted(core.options.advertise_client_urls))


def _header(core: Core) -> rpc_pb2.ResponseHeader:
    return core.header(0)  # as in etcd, these headers have no revision


def _check_known(core: Core, member_id: int) -> None:
    if member_id != core.machine.identity.member_id:
        raise errors.MEMBER_NOT_FOUND.error()


def _check_urls(urls: Sequence[str]) -> None:
    if not 0 < len(urls) <= limits.PEER_URLS_MAX:
        raise errors.MEMBER_URLS_INVALID.error()
    for url in urls:
        parts = urlsplit(url)
        try:
            has_port = parts.port is not None
        except ValueError:
            has_port = False
        sound = parts.scheme in ("http", "https") and parts.hostname is not None and has_port and parts.path == ""
        if not sound and not (parts.scheme in ("unix", "unixs") and (parts.netloc or parts.path)):
            raise errors.MEMBER_URLS_INVALID.error()


def member_list(core: Core, _request: Message) -> bytes:
    return rpc_pb2.MemberListResponse(header=_header(core), members=_members(core)).SerializeToString()


def member_add(core: Core, request: rpc_pb2.MemberAddRequest) -> bytes:
    _check_urls(request.peerURLs)
    if not set(request.peerURLs).isdisjoint(_peer_urls(core)):
        raise errors.PEER_URLS_EXIST.error()
    raise (errors.TOO_MANY_LEARNERS if request.isLearner else errors.NOT_ENOUGH_STARTED).error()


def member_remove(core: Core, request: rpc_pb2.MemberRemoveRequest) -> bytes:
    _check_known(core, request.ID)
    raise errors.NOT_ENOUGH_STARTED.error()


def member_update(core: Core, request: rpc_pb2.MemberUpdateRequest) -> bytes:
    """Saves the peer URLs. Nothing listens there, but scripts that move a member find the URLs that they wrote."""
    _check_known(core, request.ID)
    urls = [url.strip() for url in request.peerURLs[: limits.PEER_URLS_MAX + 1]]
    _check_urls(urls)
    core.machine.name_peer_urls(tuple(urls))
    return rpc_pb2.MemberUpdateResponse(header=_header(core), members=_members(core)).SerializeToString()


def member_promote(core: Core, request: rpc_pb2.MemberPromoteRequest) -> bytes:
    _check_known(core, request.ID)
    raise errors.NOT_A_LEARNER.error()
