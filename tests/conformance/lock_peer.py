# SPDX-License-Identifier: Apache-2.0
"""Locks and elections as a client calls them: answered at once, or waited for in the background."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message

from lessor.api.methods import METHODS
from lessor.api.proto import election_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.subject import Conversation, Subject, new_lease_id

_BY_REQUEST = {
    method.request: f"{method.service}/{method.name}"
    for method in METHODS
    if method.service in ("v3lockpb.Lock", "v3electionpb.Election") and method.unary
}


class Pending:
    """A call that may wait for long."""

    def __init__(self, call: Any) -> None:
        self._call = call

    @property
    def done(self) -> bool:
        return bool(self._call.done())

    def cancel(self) -> None:
        self._call.cancel()

    def wait(self) -> None:
        """Returns when the call has ended, in whatever way."""
        with suppress(grpc.RpcError):
            self._call.result()

    def result(self) -> Any:
        """The reply, or the Failure; AssertionError when neither comes."""
        try:
            return self._call.result()
        except grpc.RpcError as error:
            status: Any = error
            assert status.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "no answer"
            return Failure(status.code().value[0], status.details())


class LockPeer:
    """The calls of both services, on the connection of a subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._started: list[Pending] = []  # grpcio cancels a call that nobody holds on to

    def start(self, request: Message, timeout_s: float = CALL_S_MAX) -> Pending:
        pending = Pending(self.subject.stub(_BY_REQUEST[type(request)]).future(request, timeout=timeout_s))
        self._started.append(pending)
        return pending

    def ask(self, request: Message) -> Any:
        """The reply, or the Failure."""
        return self.start(request).result()

    def lease(self, ttl_s: int = 600) -> int:
        lease_id = new_lease_id()
        self.subject.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
        return lease_id

    def end(self, lease_id: int) -> int:
        """Revokes a lease; returns the revision."""
        return int(self.subject.do(rpc.LeaseRevokeRequest(ID=lease_id)).header.revision)

    # --- locks ---

    def lock(self, name: bytes, lease_id: int) -> Any:
        return self.ask(lock_pb2.LockRequest(name=name, lease=lease_id))

    def wait_for_lock(self, name: bytes, lease_id: int) -> Pending:
        """Begins to wait; returns when the call has its place in the line."""
        pending = self.start(lock_pb2.LockRequest(name=name, lease=lease_id))
        self.until_there(key_of(name, lease_id))
        return pending

    def unlock(self, key: bytes) -> Any:
        return self.ask(lock_pb2.UnlockRequest(key=key))

    # --- elections ---

    def campaign(self, name: bytes, lease_id: int, value: bytes = b"") -> Any:
        return self.ask(election_pb2.CampaignRequest(name=name, lease=lease_id, value=value))

    def wait_for_victory(self, name: bytes, lease_id: int, value: bytes = b"") -> Pending:
        """Begins to wait; returns when the candidate has its place in the line."""
        pending = self.start(election_pb2.CampaignRequest(name=name, lease=lease_id, value=value))
        self.until_there(key_of(name, lease_id))
        return pending

    def proclaim(self, leader: election_pb2.LeaderKey, value: bytes) -> Any:
        return self.ask(election_pb2.ProclaimRequest(leader=leader, value=value))

    def resign(self, leader: election_pb2.LeaderKey) -> Any:
        return self.ask(election_pb2.ResignRequest(leader=leader))

    def leader(self, name: bytes) -> Any:
        return self.ask(election_pb2.LeaderRequest(name=name))

    def observe(self, name: bytes) -> Conversation:
        stream = self.subject.conversation("v3electionpb.Election/Observe")
        stream.send(election_pb2.LeaderRequest(name=name))
        stream.half_close()
        return stream

    # --- the store ---

    def until_there(self, key: bytes) -> None:
        self._until(lambda: self.subject.get(key) is not None)

    def until_gone(self, key: bytes) -> None:
        self._until(lambda: self.subject.get(key) is None)

    def until_value(self, key: bytes, value: bytes) -> None:
        self._until(lambda: self.subject.get(key).value == value)

    @staticmethod
    def _until(holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + CALL_S_MAX
        while not holds():
            assert time.monotonic() < give_up, "it did not come about"
            time.sleep(0.002)  # waiting for another process, not for a clock


def key_of(name: bytes, lease_id: int) -> bytes:
    return b"%b/%x" % (name, lease_id)
