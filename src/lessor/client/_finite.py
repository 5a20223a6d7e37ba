# SPDX-License-Identifier: Apache-2.0
"""The calls: etcd's KV, Lease and Watch services and Lessor's own Leases service, each as a method.

Laws
- A method is one call and returns the server's reply as it came (protobuf messages of the v3 API), or raises a
  ClientError; see `_errors.py` for which mean that a write may have happened.
- Keys, values and range ends are bytes; a str is encoded as UTF-8. Times are seconds.
- Nothing here imports asyncio or waits but in the channel; see `_service.py`. The endless calls are in `_calls.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import leases_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import snapshot_forms
from lessor.base.errors import LEASE_NOT_FOUND
from lessor.client._arguments import checked
from lessor.client._asker import DEFAULT, HAS_LEADER, Asker, Timeout
from lessor.client._enums import LeaseOrder, SortOrder, SortTarget
from lessor.client._errors import ConnectionLost, ServerError
from lessor.client._login import Token, token_refused
from lessor.client._requests import (
    Bytes,
    delete_request,
    put_request,
    range_request,
    to_bytes,
)

_KV = "/etcdserverpb.KV/"
_LEASE = "/etcdserverpb.Lease/"
_RANGE = BY_PATH[_KV + "Range"]
_RANGE_STREAM = BY_PATH[_KV + "RangeStream"]
_PUT = BY_PATH[_KV + "Put"]
_DELETE_RANGE = BY_PATH[_KV + "DeleteRange"]
_TXN = BY_PATH[_KV + "Txn"]
_COMPACT = BY_PATH[_KV + "Compact"]
_SNAPSHOT = BY_PATH["/etcdserverpb.Maintenance/Snapshot"]
_LEASE_GRANT = BY_PATH[_LEASE + "LeaseGrant"]
_LEASE_REVOKE = BY_PATH[_LEASE + "LeaseRevoke"]
_LEASE_KEEP_ALIVE = BY_PATH[_LEASE + "LeaseKeepAlive"]
_LEASE_TIME_TO_LIVE = BY_PATH[_LEASE + "LeaseTimeToLive"]
_LEASE_LEASES = BY_PATH[_LEASE + "LeaseLeases"]
_LIST = BY_PATH["/lessorpb.Leases/List"]
_LEASE_EVENTS = BY_PATH["/lessorpb.Leases/Watch"]


@checked
class FiniteCalls(Asker):
    """The calls that end by themselves. See `AsyncClient`, which has them."""

    # --- leases -------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int, lease_id: int = 0, *, timeout_s: Timeout = DEFAULT) -> rpc.LeaseGrantResponse:
        """Makes a lease of at least `ttl_s` seconds; the server may raise a short TTL to its minimum (see reply.TTL).

        `lease_id` 0: the server chooses. ServerError: FailedPrecondition when the id is in use, OutOfRange above
        9,000,000,000 s. After an unknown outcome with an id of your own, look with time_to_live.
        """
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        return await self.ask(_LEASE_GRANT, request, rpc.LeaseGrantResponse, timeout_s)

    async def revoke(self, lease_id: int, *, timeout_s: Timeout = DEFAULT) -> rpc.LeaseRevokeResponse:
        """Ends a lease now and deletes its keys, all in one revision. ServerError NotFound: there is no such lease."""
        request = rpc.LeaseRevokeRequest(ID=lease_id)
        return await self.ask(_LEASE_REVOKE, request, rpc.LeaseRevokeResponse, timeout_s)

    async def time_to_live(
        self, lease_id: int, *, keys: bool = False, timeout_s: Timeout = DEFAULT
    ) -> rpc.LeaseTimeToLiveResponse:
        """Granted and remaining seconds of a lease and, when asked for, its keys in no particular order.

        A lease that is gone is not an error: TTL -1 and grantedTTL 0.
        """
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        return await self.ask(_LEASE_TIME_TO_LIVE, request, rpc.LeaseTimeToLiveResponse, timeout_s)

    async def leases(self, *, timeout_s: Timeout = DEFAULT) -> rpc.LeaseLeasesResponse:
        """The ids of all leases, the one that ends first at the beginning. Cost: grows with their number."""
        return await self.ask(_LEASE_LEASES, rpc.LeaseLeasesRequest(), rpc.LeaseLeasesResponse, timeout_s)

    async def lease_list(
        self,
        *,
        key_prefix: Bytes = b"",
        remaining_s_max: float = 0.0,
        order: LeaseOrder | int = LeaseOrder.ID,
        limit: int = 0,
        keys_limit: int = 0,
        timeout_s: Timeout = DEFAULT,
    ) -> AsyncGenerator[leases_pb2.LeaseListResponse, None]:
        """Yields the live leases page by page: granted and remaining time, number of keys, keys. Lessor only.

        key_prefix       only leases with a key that begins with it
        remaining_s_max  only leases with at most so many seconds left, to the millisecond; 0: all
        order            a LeaseOrder: by id, by remaining time, by number of keys (most first)
        limit            the most leases of a page, up to 10,000; 0: 100
        keys_limit       the most keys shown of a lease, up to 1,000; 0: none

        No page is asked for ahead: to read one page only, stop after it. In the orders by id and by remaining time, a
        lease that lives from the first page to the last is never left out; by remaining time, a lease that is renewed
        meanwhile may come twice. Cost: for each page the server looks at all its leases, in small steps, so ask for
        large pages to read all leases. `timeout_s`: for each page. ServerError Unimplemented: the server is not
        Lessor; PermissionDenied: there are keys that the user may not read.
        """
        request = leases_pb2.LeaseListRequest(
            key_prefix=to_bytes(key_prefix),
            remaining_ms_max=max(int(remaining_s_max * 1000), 1) if remaining_s_max > 0 else 0,
            order=cast("leases_pb2.LeaseListRequest.Order", order),
            limit=limit,
            keys_limit=keys_limit,
        )
        while True:
            page = await self.ask(_LIST, request, leases_pb2.LeaseListResponse, timeout_s)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def lease_events(self) -> AsyncGenerator[leases_pb2.LeaseWatchResponse, None]:
        """Yields the events of leases from now on: granted, expired, revoked. Renewals are not shown. Lessor only.

        The first response is `created` and has no events. All later events are sent, in order; to know all leases, list
        them after the first response. There is no history: a lost connection raises ConnectionLost, and a reader that
        stays away until some MiB of events wait is cut off with ServerError ResourceExhausted. After either, begin anew
        and list again. ServerError Unimplemented: the server is not Lessor; PermissionDenied: the user may not read
        all keys.
        """
        credentials = self.credentials()
        while True:
            token = await credentials.metadata()
            try:
                async with self.channel.stream(_LEASE_EVENTS, metadata=token) as call:
                    await call.send(leases_pb2.LeaseWatchRequest(), last=True)
                    async for reply in call:
                        credentials.accepted()
                        yield cast(leases_pb2.LeaseWatchResponse, reply)
            except ServerError as error:
                if token_refused(error) and credentials.renew():
                    continue
                raise
            raise ConnectionLost("the server ended the lease events", endpoint="")

    async def keep_alive_once(self, lease_id: int, *, timeout_s: Timeout = DEFAULT) -> rpc.LeaseKeepAliveResponse:
        """Renews a lease once, to its full TTL. ServerError NotFound: it is gone."""
        limit_s = self.limit_s(timeout_s)
        request = rpc.LeaseKeepAliveRequest(ID=lease_id)

        async def renew(token: Token) -> rpc.LeaseKeepAliveResponse | None:
            metadata = (*HAS_LEADER, *token)
            async with self.channel.stream(_LEASE_KEEP_ALIVE, timeout_s=limit_s, metadata=metadata) as call:
                await call.send(request, last=True)
                return cast(rpc.LeaseKeepAliveResponse | None, await call.receive())

        reply = await self.with_token(renew, limit_s)
        if reply is None or reply.TTL <= 0:
            raise ServerError(LEASE_NOT_FOUND.code, LEASE_NOT_FOUND.message)
        return reply

    # --- keys ---------------------------------------------------------------------------------------------------

    async def put(
        self,
        key: Bytes,
        value: Bytes = b"",
        *,
        lease_id: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.PutResponse:
        """Writes a key. With `lease_id` the key is deleted when that lease ends; without, it loses the lease it had.

        `prev_kv`: the reply has the key as it was before. `ignore_value`, `ignore_lease`: the key, which must exist,
        keeps its value or its lease. ServerError NotFound: no such lease.
        """
        request = put_request(key, value, lease_id, prev_kv, ignore_value, ignore_lease)
        return await self.ask(_PUT, request, rpc.PutResponse, timeout_s)

    async def get(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder | int = SortOrder.NONE,
        sort_target: SortTarget | int = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.RangeResponse:
        """Reads one key, or the keys from `key` up to but not including `range_end`.

        range_end     b"" for one key; `prefix_end(key)` for all keys that begin with it; FROM_KEY for all from it on
        prefix        all keys that begin with `key`; without range_end
        limit         at most so many keys (reply.more says that there are others); 0: all
        revision      the state at that revision; 0: now. OutOfRange when it is compacted or not reached yet
        sort_order, sort_target  a SortOrder and a SortTarget; by default in key order
        serializable  answer from memory without asking the cluster: quicker, possibly stale
        keys_only, count_only    leave out the values, or everything but reply.count
        min_.., max_..           only keys within these revisions, both included; 0: no bound
        """
        request = range_request(
            key,
            range_end=range_end,
            prefix=prefix,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return await self.ask(_RANGE, request, rpc.RangeResponse, timeout_s)

    async def get_stream(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder | int = SortOrder.NONE,
        sort_target: SortTarget | int = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[rpc.RangeResponse, None]:
        """Yields the reply of `get` in pieces, for ranges of any size: neither side has all of it in memory.

        The arguments are those of `get`. All pieces show one revision. Each has the next keys; only the last one has
        `header`, `more` and `count`, so that all pieces merged (`MergeFrom`) are the reply of `get`. The server makes
        them while you take them. `timeout_s`: for all pieces together; None: no limit.

        ServerError: as of `get`, from any piece; OutOfRange when the revision is compacted meanwhile; Unimplemented for
        another order than that of keys, for bounds on revisions, and from an etcd before 3.7. A connection that is lost
        underway is not made again: ConnectionLost. Begin anew after either, or go on behind the last key at the
        revision that you have named.
        """
        request = range_request(
            key,
            range_end=range_end,
            prefix=prefix,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        async with aclosing(self._pieces(_RANGE_STREAM, request, timeout_s)) as pieces:
            async for piece in pieces:
                yield cast(rpc.RangeStreamResponse, piece).range_response

    async def delete(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        prev_kv: bool = False,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.DeleteRangeResponse:
        """Deletes one key, or a range as in `get`; reply.deleted says how many. `prev_kv`: the reply has them."""
        request = delete_request(key, range_end, prefix, prev_kv)
        return await self.ask(_DELETE_RANGE, request, rpc.DeleteRangeResponse, timeout_s)

    async def txn(
        self,
        compare: Sequence[rpc.Compare] = (),
        success: Sequence[rpc.RequestOp] = (),
        failure: Sequence[rpc.RequestOp] = (),
        *,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.TxnResponse:
        """Carries out `success` if all of `compare` hold, otherwise `failure`, all at one instant (reply.succeeded)."""
        request = rpc.TxnRequest(compare=compare, success=success, failure=failure)
        return await self.ask(_TXN, request, rpc.TxnResponse, timeout_s)

    async def compact(
        self, revision: int, *, physical: bool = False, timeout_s: Timeout = DEFAULT
    ) -> rpc.CompactionResponse:
        """Forgets the history before `revision`. `physical`: answer only when the space is free.

        ServerError OutOfRange: it is compacted already, or not reached yet.
        """
        request = rpc.CompactionRequest(revision=revision, physical=physical)
        return await self.ask(_COMPACT, request, rpc.CompactionResponse, timeout_s)

    # --- maintenance --------------------------------------------------------------------------------------------

    async def snapshot(self, *, form: str = "etcd") -> AsyncGenerator[rpc.SnapshotResponse, None]:
        """A copy of the server's data as a file, in pieces; the last one is the SHA-256 of those before it.

        `form`: "etcd" for the file of an etcd, "lessor" for Lessor's own, which a server that is no Lessor does not
        have: it sends etcd's. A Lessor without etcd's form sends its own. Raises ServerError for another form.

        There is no time limit. A connection that is lost underway is not made again. Where auth is on, only root may.
        """
        asked = ((snapshot_forms.FIELD, form),)
        async with aclosing(self._pieces(_SNAPSHOT, rpc.SnapshotRequest(), None, asked)) as pieces:
            async for piece in pieces:
                yield cast(rpc.SnapshotResponse, piece)

    async def _pieces(
        self, method: Method, request: Message, timeout_s: float | None, metadata: Token = ()
    ) -> AsyncGenerator[Message, None]:
        """The replies to one request, which end by themselves. Begun anew with a new token before the first of them."""
        credentials = self.credentials()
        while True:
            token = await credentials.metadata()
            begun = False
            try:
                async with self.channel.stream(method, timeout_s=timeout_s, metadata=(*token, *metadata)) as call:
                    await call.send(request, last=True)
                    async for reply in call:
                        begun = True
                        yield reply
                    return
            except ServerError as error:
                if begun or not token_refused(error) or not credentials.renew():
                    raise
