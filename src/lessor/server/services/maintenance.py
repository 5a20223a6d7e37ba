# SPDX-License-Identifier: Apache-2.0
"""The Maintenance service, except alarms (state/machine.py) and snapshots (snapshot.py).

Laws
- Long work never holds the loop up: digests are long replies (loop/long_reply.py), however many are asked for;
  defragmentation runs in the commit thread. It runs there between two commits, so later writes are answered after it,
  in order. Calls that come while one waits for its turn share that one.
- A call whose peer went away is not answered. A digest ends with it, a defragmentation runs to its end.

MoveLeader lets one of the servers lead that follow this one; a server that stands alone has no target but itself. The
new leader is there some milliseconds after the reply. There is no version to downgrade to either: Status reports an
enabled downgrade until it is cancelled or the last server of a log stops, and nothing else changes.
"""

import logging
import re
from collections.abc import Iterator

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.api.version import CLUSTER_VERSION, ETCD_VERSION
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.durable.engine import EngineError
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.observe.health import alarm_name
from lessor.server.services.later import Later
from lessor.state.digest import KvDigest

log = logging.getLogger("lessor")

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?(?:-[0-9A-Za-z.-]+)?")


# --- Status -------------------------------------------------------------------------------------------------------


def alarm_text(member_id: int, kind: int) -> str:
    return f"memberID:{member_id} alarm:{alarm_name(kind)}"


class Downgrades:
    """Status and Downgrade. They share the downgrade that was enabled: `core.downgrade`, in memory only."""

    def status(self, core: Core, _request: Message) -> bytes:
        machine = core.machine
        header = machine.header()
        # Lessor has no raft log. Its batch number grows by one with each commit, as raft's index does.
        index = machine.journal.number
        leader_id = header.member_id if core.elsewhere is None else core.elsewhere.leader_id
        faults = [alarm_text(member, kind) for member, kind in sorted(machine.alarms)]
        if not leader_id:
            faults.append(errors.NO_LEADER.message)
        response = rpc_pb2.StatusResponse(
            header=header,
            version=ETCD_VERSION,
            storageVersion=ETCD_VERSION,
            dbSize=core.committer.size_bytes,
            dbSizeInUse=core.committer.in_use_bytes,
            dbSizeQuota=core.options.quota_backend_bytes,
            leader=leader_id,
            raftIndex=index,
            raftAppliedIndex=index,
            raftTerm=header.raft_term,
            errors=faults,
            downgradeInfo=rpc_pb2.DowngradeInfo(enabled=core.downgrade != "", targetVersion=core.downgrade),
        )
        return response.SerializeToString()

    def downgrade(self, core: Core, request: rpc_pb2.DowngradeRequest) -> bytes:
        action = rpc_pb2.DowngradeRequest.DowngradeAction
        if request.action == action.CANCEL:
            core.downgrade = ""
        elif request.action in (action.VALIDATE, action.ENABLE):
            target = _known_target(request.version)
            if core.downgrade:
                raise errors.DOWNGRADE_IN_PROGRESS.error()
            if request.action == action.ENABLE:
                core.downgrade = target
        else:
            raise errors.UNKNOWN_METHOD.error()
        for member in list(core.followers.values()):
            member.tell()
        return rpc_pb2.DowngradeResponse(header=core.machine.header(), version=CLUSTER_VERSION).SerializeToString()


# --- digests ------------------------------------------------------------------------------------------------------


def hash_kv(core: Core, call: UnaryCall, request: rpc_pb2.HashKVRequest) -> Waiting:
    """HashKV: a digest of keys and history at a revision. Equal data has equal digests."""
    return core.long_replies.begin(call, _hash_kv(core, core.machine.digest(request.revision)), request)


def _steps(digest: KvDigest) -> Iterator[bytes]:
    while not digest.step(limits.DIGEST_STEP_KEYS):
        yield b""


def _hash_kv(core: Core, digest: KvDigest) -> Iterator[bytes]:
    yield from _steps(digest)
    yield rpc_pb2.HashKVResponse(
        header=core.machine.header(),
        hash=digest.value,
        compact_revision=digest.compact_revision,
        hash_revision=digest.revision,
    ).SerializeToString()


def hash_all(core: Core, call: UnaryCall, request: rpc_pb2.HashRequest) -> Waiting:
    """Hash: the digest of the present keys and their history. Never 0, as in etcd, where a file is never empty."""
    return core.long_replies.begin(call, _hash_all(core), request)


def _hash_all(core: Core) -> Iterator[bytes]:
    digest = core.machine.digest()
    yield from _steps(digest)
    yield rpc_pb2.HashResponse(header=core.machine.header(), hash=digest.value or 1).SerializeToString()


# --- space --------------------------------------------------------------------------------------------------------


def defragment(core: Core, call: UnaryCall, _request: rpc_pb2.DefragmentRequest) -> Later:
    async def answer() -> bytes:
        try:
            await core.committer.defragment()
        except EngineError as error:
            log.warning("defragmentation failed", extra={"error": str(error)})
            raise EtcdError(Code.UNKNOWN, str(error)) from None
        return rpc_pb2.DefragmentResponse().SerializeToString()

    return Later(core, call, answer)


# --- one member ---------------------------------------------------------------------------------------------------


def move_leader(core: Core, request: rpc_pb2.MoveLeaderRequest) -> bytes:
    if request.targetID in {member.member_id for member in core.followers.values()}:
        core.hand_over(request.targetID)
    elif request.targetID != core.machine.identity.member_id:
        raise errors.BAD_LEADER_TRANSFEREE.error()
    return rpc_pb2.MoveLeaderResponse().SerializeToString()


def _known_target(version: str) -> str:
    """The version as Status reports it. Only the minor version before ours is a valid target."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise errors.WRONG_DOWNGRADE_FORMAT.error()
    major, minor = (int(part) for part in CLUSTER_VERSION.split("."))
    if (int(found[1]), int(found[2])) != (major, minor - 1):
        raise errors.INVALID_DOWNGRADE_TARGET.error()
    return f"{major}.{minor - 1}.0"
