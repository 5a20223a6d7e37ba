# SPDX-License-Identifier: Apache-2.0
"""HashKV and Hash: digests of the data, made one after the other beside all other calls.

Laws
- One digest is made at a time, and one step of it in a turn, however many are asked for. Those that wait have fair
  shares by connection and address, see loop/fair_queue.py.
- At most DIGESTS_WAITING_MAX calls wait. Beyond it the peer with most of them is answered TOO_MANY_REQUESTS.
- A call whose peer went away is dropped, and the work for it ends with the step in hand.
- Data that has not changed is not taken in twice in a row: the last digest is kept.

The content is state/digest.py's: it stays right while the data changes between two steps.
"""

import asyncio
from collections.abc import Callable

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import UnaryCall
from lessor.server.loop.core import Core
from lessor.server.loop.fair_queue import FairQueue, Peer
from lessor.state.digest import KvDigest

Reply = Callable[[Core, KvDigest], bytes]


class Digesting:
    """A call waits for this while its digest is made (call.Waiting)."""

    open_ended = True

    __slots__ = ("_digests", "call", "digest", "reply")

    def __init__(self, digests: "Digests", call: UnaryCall, digest: KvDigest, reply: Reply) -> None:
        self._digests = digests
        self.call: UnaryCall | None = call
        self.digest = digest
        self.reply = reply

    def on_gone(self) -> None:
        self.call = None
        self._digests.forget(self)


class Digests:
    """The digests of one server that are asked for."""

    def __init__(self) -> None:
        self._queue: FairQueue[Digesting] = FairQueue()
        self._working = False
        self._last: KvDigest | None = None

    def hash_kv(self, core: Core, call: UnaryCall, request: rpc_pb2.HashKVRequest) -> Digesting:
        """HashKV: a digest of keys and history at a revision. Equal data has equal digests."""
        return self._begin(core, call, core.machine.digest(request.revision), _hash_kv_reply)

    def hash_all(self, core: Core, call: UnaryCall, _request: rpc_pb2.HashRequest) -> Digesting:
        """Hash: the digest of the present keys and their history."""
        return self._begin(core, call, core.machine.digest(), _hash_reply)

    def forget(self, digesting: Digesting) -> None:
        """The call has ended."""
        self._queue.discard(digesting)

    def _begin(self, core: Core, call: UnaryCall, digest: KvDigest, reply: Reply) -> Digesting:
        digesting = Digesting(self, call, digest, reply)
        self._queue.add(digesting, Peer(call.held, call.held.address, ""))
        if len(self._queue) > limits.DIGESTS_WAITING_MAX:
            refused = self._queue.most_crowding(digesting)
            self._queue.discard(refused)
            if refused is digesting:
                raise errors.TOO_MANY_REQUESTS.error()
            _answer(refused, errors.TOO_MANY_REQUESTS.error())
        if not self._working:
            self._working = True
            core.run(self._work(core))
        return digesting

    async def _work(self, core: Core) -> None:
        try:
            while self._queue:
                digesting = self._queue.take()
                try:
                    await self._make(digesting)
                    if digesting.call is not None:
                        _answer(digesting, digesting.reply(core, digesting.digest))
                except Exception as error:
                    _answer(digesting, as_answer(error, "a digest"))
                await asyncio.sleep(0)
        finally:
            self._working = False

    async def _make(self, digesting: Digesting) -> None:
        """Takes the data in, until all of it is in or the call has ended."""
        digest = digesting.digest
        if self._last is not None and digest.same_data(self._last):
            digesting.digest = self._last
            return
        while digesting.call is not None and not digest.step(limits.DIGEST_STEP_KEYS):
            await asyncio.sleep(0)
        if digesting.call is not None:
            self._last = digest


def _answer(digesting: Digesting, outcome: bytes | EtcdError) -> None:
    call, digesting.call = digesting.call, None
    if call is not None:
        call.finish(outcome)


def _hash_kv_reply(core: Core, made: KvDigest) -> bytes:
    response = rpc_pb2.HashKVResponse(
        header=core.machine.header(),
        hash=made.value,
        compact_revision=made.compact_revision,
        hash_revision=made.revision,
    )
    return response.SerializeToString()


def _hash_reply(core: Core, made: KvDigest) -> bytes:
    return rpc_pb2.HashResponse(header=core.machine.header(), hash=made.value).SerializeToString()
