# SPDX-License-Identifier: Apache-2.0
"""v3lockpb.Lock: named locks. Each call's key is attached to the caller's lease.

Laws
- The lock belongs to the oldest key below `name` and a slash. Each call creates a key there and waits until it is the
  oldest: first come, first served.
- A second call with the same lease finds the same key: a client may repeat a call whose reply it did not get.
- No key, no lock: if the key of a waiting call goes, mostly with its lease, the call fails at once and never gets the
  lock.

State changes are txns on the state machine, as any client could send them. Calls wait in waiting_lines.py.
"""

from lessor.api.proto import lock_pb2, rpc_pb2
from lessor.base.contenders import key_of, prefix_of
from lessor.base.errors import Code, ErrorText
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.services.waiting_lines import WaitingLines, created_at

SESSION_EXPIRED = ErrorText(Code.UNKNOWN, "mutex: session is expired")


class Locks:
    """The two calls."""

    def __init__(self, lines: WaitingLines) -> None:
        self._lines = lines

    def lock(self, _core: Core, call: UnaryCall, request: lock_pb2.LockRequest) -> Waiting | None:
        """Lock: answers with the key when the lock belongs to it."""
        lines = self._lines
        name = request.name
        lease_id = lines.session_lease(request.lease)
        key = key_of(name, lease_id)
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, lease=lease_id))
        get = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
        txn = lines.apply(rpc_pb2.TxnRequest(compare=[created_at(key, 0)], success=[put], failure=[get]))
        found = None if txn.succeeded else txn.responses[0].response_range.kvs[0]
        return lines.contend(
            call,
            prefix_of(name),
            key,
            txn.header.revision if found is None else found.create_revision,
            at_once=lock_pb2.LockResponse(header=txn.header, key=key).SerializeToString(),
            won=lambda: lock_pb2.LockResponse(header=lines.machine.header(), key=key).SerializeToString(),
            lost=SESSION_EXPIRED,
        )

    def unlock(self, _core: Core, request: lock_pb2.UnlockRequest) -> bytes:
        """Unlock: deletes the key for any caller. The key need not exist."""
        deleted = self._lines.apply(rpc_pb2.DeleteRangeRequest(key=request.key))
        return lock_pb2.UnlockResponse(header=deleted.header).SerializeToString()
