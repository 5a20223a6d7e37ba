# SPDX-License-Identifier: Apache-2.0
"""The calls that the clients of a run make, drawn at random.

Keys: r/0 .. r/3 are registers, each by itself; p0/a and p0/b, p1/a and p1/b are pairs that txns change together; m/..
are for txns that compare revisions; l/.. hang on leases. No two puts write the same value, and no lease id is granted
twice.
"""

import random
import threading
from typing import Any

from lessor.api.proto import rpc_pb2 as rpc
from tests.linear.clients import Answer
from tests.linear.history import OK

TTLS_S = (1, 1, 1, 2, 3, 60)
LEASES_KNOWN_MAX = 24
Compare = rpc.Compare


def put_op(key: bytes, value: bytes, lease: int = 0, *, prev_kv: bool = False) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv))


def range_op(key: bytes, end: bytes = b"") -> rpc.RequestOp:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, range_end=end))


def end_of(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Knowledge:
    """What the clients of a run know together: values that were there, leases, the newest revision."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[bytes, bytes] = {}
        self._revisions: dict[bytes, int] = {}
        self.leases: list[int] = []
        self.revision = 1
        self._next_lease = 1_000

    def value(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def mod_revision(self, key: bytes) -> int:
        return self._revisions.get(key, 0)

    def new_lease(self) -> int:
        with self._lock:
            self._next_lease += 1
            return self._next_lease

    def granted(self, lease: int) -> None:
        with self._lock:
            self.leases = [*self.leases, lease][-LEASES_KNOWN_MAX:]

    def learn(self, request: Any, answer: Answer) -> None:
        if isinstance(request, rpc.LeaseGrantRequest):
            self.granted(request.ID)
        if answer.outcome != OK:
            return
        with self._lock:
            self.revision = max(self.revision, answer.reply.header.revision)
            if isinstance(request, rpc.PutRequest):
                self._wrote(request, answer.reply.header.revision)
            elif isinstance(request, rpc.TxnRequest):
                for one in request.success if answer.reply.succeeded else ():
                    if one.HasField("request_put"):
                        self._wrote(one.request_put, answer.reply.header.revision)
            elif isinstance(request, rpc.RangeRequest) and not request.revision:
                for kv in answer.reply.kvs:
                    self._values[kv.key] = kv.value
                    self._revisions[kv.key] = kv.mod_revision

    def _wrote(self, put: rpc.PutRequest, revision: int) -> None:
        self._values[put.key] = put.value
        self._revisions[put.key] = revision


class Load:
    """The requests of one client."""

    def __init__(self, client: str, chance: random.Random, knowledge: Knowledge) -> None:
        self._client = client.encode()
        self._chance = chance
        self._knows = knowledge
        self._written = 0

    def next(self) -> Any:
        kind = self._chance.random()
        if kind < 0.36:
            return self._on_register()
        if kind < 0.60:
            return self._on_pair()
        if kind < 0.70:
            return self._by_revision()
        return self._on_lease()

    def _value(self) -> bytes:
        self._written += 1
        return b"%s.%d" % (self._client, self._written)

    def _on_register(self) -> Any:
        key = b"r/%d" % self._chance.randrange(4)
        kind = self._chance.random()
        if kind < 0.35:
            return rpc.PutRequest(key=key, value=self._value(), prev_kv=self._chance.random() < 0.3)
        if kind < 0.6:
            return rpc.RangeRequest(key=key)
        if kind < 0.72:
            return rpc.DeleteRangeRequest(key=key, prev_kv=self._chance.random() < 0.5)
        return rpc.TxnRequest(
            compare=[self._as_known(key)],
            success=[put_op(key, self._value(), prev_kv=self._chance.random() < 0.3)],
            failure=[range_op(key)],
        )

    def _as_known(self, key: bytes) -> rpc.Compare:
        value = self._knows.value(key)
        if value is None or self._chance.random() < 0.2:
            return Compare(key=key, target=Compare.VERSION, result=Compare.EQUAL, version=0)
        return Compare(key=key, target=Compare.VALUE, result=Compare.EQUAL, value=value)

    def _on_pair(self) -> Any:
        prefix = b"p%d/" % self._chance.randrange(2)
        both, end = (prefix + b"a", prefix + b"b"), end_of(prefix)
        kind = self._chance.random()
        if kind < 0.3:
            return rpc.TxnRequest(
                compare=[self._as_known(key) for key in both],
                success=[put_op(key, self._value()) for key in both],
                failure=[range_op(prefix, end)],
            )
        if kind < 0.5:
            return rpc.TxnRequest(success=[put_op(both[0], self._value()), put_op(both[1], self._value())])
        if kind < 0.6:
            return rpc.TxnRequest(success=[put_op(both[0], self._value()), range_op(prefix, end)])
        if kind < 0.75:
            return rpc.TxnRequest(success=[range_op(key) for key in both])
        if kind < 0.92:
            return rpc.RangeRequest(key=prefix, range_end=end, limit=self._chance.choice((0, 0, 1)))
        return rpc.DeleteRangeRequest(key=prefix, range_end=end, prev_kv=True)

    def _by_revision(self) -> Any:
        kind = self._chance.random()
        key = b"m/%d" % self._chance.randrange(3)
        if kind < 0.3:
            revision = self._chance.randint(1, self._knows.revision)
            return rpc.RangeRequest(key=b"\0", range_end=b"\0", revision=revision, limit=20)
        compare = Compare(key=key, target=Compare.MOD, result=Compare.EQUAL, mod_revision=self._knows.mod_revision(key))
        if kind < 0.5:
            gone = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, prev_kv=True))
            return rpc.TxnRequest(compare=[compare], success=[gone], failure=[range_op(b"m/", b"m0")])
        inner = rpc.TxnRequest(success=[put_op(key, self._value(), prev_kv=True), range_op(b"m/", b"m0")])
        return rpc.TxnRequest(compare=[compare], success=[rpc.RequestOp(request_txn=inner)], failure=[range_op(key)])

    def _on_lease(self) -> Any:
        kind, leases = self._chance.random(), self._knows.leases
        if kind < 0.06 or not leases:
            return rpc.LeaseGrantRequest(ID=self._knows.new_lease(), TTL=self._chance.choice(TTLS_S))
        lease = self._chance.choice(leases)
        key = b"l/%d" % self._chance.randrange(10)
        if kind < 0.32:
            return rpc.PutRequest(key=key, value=self._value(), lease=self._chance.choice((lease, lease, lease, 0)))
        if kind < 0.40:
            other = b"l/x%d" % self._chance.randrange(3)
            return rpc.TxnRequest(success=[put_op(key, self._value(), lease), put_op(other, self._value(), lease)])
        if kind < 0.62:
            return rpc.LeaseKeepAliveRequest(ID=lease)
        if kind < 0.82:
            return rpc.LeaseTimeToLiveRequest(ID=lease, keys=self._chance.random() < 0.7)
        if kind < 0.86:
            return rpc.LeaseRevokeRequest(ID=lease)
        if kind < 0.95:
            return rpc.RangeRequest(key=b"l/", range_end=b"l0")
        return rpc.LeaseLeasesRequest()
