# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client: etcd's KV, Lease and Watch services as methods.

Laws
- A method is one call and returns the server's reply as it came (protobuf messages of the v3 API), or raises a
  ClientError; see `_errors.py` for which mean that a write may have happened.
- Keys, values and range ends are bytes; a str is encoded as UTF-8. Times are seconds.
- The two endless ones, `keep_alive` and `watch`, are iterators that survive a lost connection. They run in the caller's
  task: nothing happens between two steps of the loop, so take each step soon.

    async with AsyncClient("127.0.0.1:2379") as client:
        lease = await client.grant(30)
        await client.put("service/a", "10.0.0.7:80", lease_id=lease.ID)
        async for renewed in client.keep_alive(lease.ID):
            ...
"""

import asyncio
import random
import ssl as tls
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Final, TypeVar, cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import LEASE_NOT_FOUND, Code
from lessor.client._channel import Channel
from lessor.client._connection import Call
from lessor.client._errors import ConnectionLost, ServerError
from lessor.client._login import Login, Token, token_refused, watch_refused

Bytes = bytes | str
M = TypeVar("M", bound=Message)
R = TypeVar("R")

FROM_KEY: Final = b"\0"  # as a range end: all keys from the first one on
RECONNECT_FIRST_S = 0.1  # wait before the second attempt to get a lost stream back; doubled each time ...
RECONNECT_S_MAX = 3.0  # ... up to this
RENEWALS_PER_TTL = 3  # one may be lost and one be late without the lease ending

# Asks the server to end the stream when it has lost touch with its cluster, rather than to leave it silent.
_HAS_LEADER = (("hasleader", "true"),)


class _Default:
    """Stands for "as the client was told" where None has a meaning of its own."""


_DEFAULT: Final = _Default()
Timeout = float | None | _Default


class AsyncClient:
    """A client for one etcd-compatible service. Connects at the first call; close it with `aclose` or `async with`.

    endpoints          "host:port", "http(s)://host:port" or "unix(s):///path", tried in order; a list, or separated by
                       commas
    connect_timeout_s  longest wait for one endpoint to take the connection
    timeout_s          longest wait for the answer to a call, unless the call says otherwise; None: no limit
    ssl                how to speak TLS; see `tls_context` and `Channel`
    user, password     who calls, where the service wants to know; logs in at the first call, and again when need be
    request_bytes_max, reply_bytes_max  the largest messages to send and to take; None: no limit but the server's

    Raises InvalidEndpoint. For tasks of one event loop; not for several threads.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "127.0.0.1:2379",
        *,
        connect_timeout_s: float = 2.0,
        timeout_s: float | None = 5.0,
        ssl: tls.SSLContext | None = None,
        user: str = "",
        password: str = "",
        request_bytes_max: int | None = None,
        reply_bytes_max: int | None = None,
    ) -> None:
        self.channel = Channel(
            endpoints,
            connect_timeout_s=connect_timeout_s,
            ssl=ssl,
            request_bytes_max=request_bytes_max,
            reply_bytes_max=reply_bytes_max,
        )
        self._timeout_s = timeout_s
        self._login = Login(user, password)
        self._watching: set[Call[Message]] = set()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; calls that are underway fail. Leases live on until their TTL ends."""
        await self.channel.aclose()

    async def call(self, method: str | Method, request: Message, *, timeout_s: Timeout = _DEFAULT) -> Message:
        """Any unary call: `method` as "/etcdserverpb.Maintenance/Status" or out of the table of methods.

        Raises KeyError for a path that is not in the table; otherwise as all calls do.
        """
        known = BY_PATH[method] if isinstance(method, str) else method
        limit_s = self._timeout_s if isinstance(timeout_s, _Default) else timeout_s
        return await self._with_token(
            lambda token: self.channel.unary(known, request, timeout_s=limit_s, metadata=token), limit_s
        )

    async def _with_token(self, attempt: Callable[[Token], Awaitable[R]], timeout_s: float | None) -> R:
        """Runs `attempt` with the user's token; once more with a new one when that is refused."""
        token = await self._login.token(self.channel, timeout_s)
        try:
            return await attempt(token)
        except ServerError as error:
            if self._login.anonymous or not token_refused(error):
                raise
            self._login.forget(token)
        return await attempt(await self._login.token(self.channel, timeout_s))

    # --- leases -------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int, lease_id: int = 0, *, timeout_s: Timeout = _DEFAULT) -> rpc.LeaseGrantResponse:
        """Makes a lease of at least `ttl_s` seconds; the server may raise a short TTL to its minimum (see reply.TTL).

        `lease_id` 0: the server chooses. ServerError: FailedPrecondition when the id is in use, OutOfRange above
        9,000,000,000 s. After an unknown outcome with an id of your own, look with time_to_live.
        """
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        return await self._call(_LEASE_GRANT, request, rpc.LeaseGrantResponse, timeout_s)

    async def revoke(self, lease_id: int, *, timeout_s: Timeout = _DEFAULT) -> rpc.LeaseRevokeResponse:
        """Ends a lease now and deletes its keys, all in one revision. ServerError NotFound: there is no such lease."""
        request = rpc.LeaseRevokeRequest(ID=lease_id)
        return await self._call(_LEASE_REVOKE, request, rpc.LeaseRevokeResponse, timeout_s)

    async def time_to_live(
        self, lease_id: int, *, keys: bool = False, timeout_s: Timeout = _DEFAULT
    ) -> rpc.LeaseTimeToLiveResponse:
        """Granted and remaining seconds of a lease and, when asked for, its keys in no particular order.

        A lease that is gone is not an error: TTL -1 and grantedTTL 0.
        """
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        return await self._call(_LEASE_TIME_TO_LIVE, request, rpc.LeaseTimeToLiveResponse, timeout_s)

    async def leases(self, *, timeout_s: Timeout = _DEFAULT) -> rpc.LeaseLeasesResponse:
        """The ids of all leases, the one that ends first at the beginning. Cost: grows with their number."""
        return await self._call(_LEASE_LEASES, rpc.LeaseLeasesRequest(), rpc.LeaseLeasesResponse, timeout_s)

    async def keep_alive_once(self, lease_id: int, *, timeout_s: Timeout = _DEFAULT) -> rpc.LeaseKeepAliveResponse:
        """Renews a lease once, to its full TTL. ServerError NotFound: it is gone."""
        limit_s = self._timeout_s if isinstance(timeout_s, _Default) else timeout_s
        request = rpc.LeaseKeepAliveRequest(ID=lease_id)

        async def renew(token: Token) -> rpc.LeaseKeepAliveResponse | None:
            metadata = (*_HAS_LEADER, *token)
            async with self.channel.stream(_LEASE_KEEP_ALIVE, timeout_s=limit_s, metadata=metadata) as call:
                await call.send(request, last=True)
                return cast(rpc.LeaseKeepAliveResponse | None, await call.receive())

        reply = await self._with_token(renew, limit_s)
        if reply is None or reply.TTL <= 0:
            raise ServerError(LEASE_NOT_FOUND.code, LEASE_NOT_FOUND.message)
        return reply

    async def keep_alive(self, lease_id: int) -> AsyncGenerator[rpc.LeaseKeepAliveResponse, None]:
        """Renews a lease now and then at every third of its TTL, yielding each renewal; ends when the lease is gone.

        The renewals happen when the next item is asked for, so do not stay away longer than two thirds of the TTL. A
        lost connection is made again until the TTL has passed since the last renewal, and then ConnectionLost or
        CallTimeout is raised: the lease may be gone by then. Before the first renewal they are raised at once.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time()
        backoff = _Backoff()
        new_token = False  # whether the token is one that was got because the last was refused
        while True:
            token: Token = ()
            try:
                token = await self._login.token(self.channel, self._timeout_s)
                async with self.channel.stream(_LEASE_KEEP_ALIVE, metadata=(*_HAS_LEADER, *token)) as call:
                    while True:
                        sent_at = loop.time()
                        await call.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
                        async with asyncio.timeout(self._patience_s(give_up_at - sent_at)):
                            reply = cast(rpc.LeaseKeepAliveResponse | None, await call.receive())
                        if reply is None:
                            break  # the server ended the stream without an error: it is stopping
                        if reply.TTL <= 0:
                            return
                        give_up_at = sent_at + reply.TTL
                        backoff.reset()
                        new_token = False
                        yield reply
                        await asyncio.sleep(sent_at + reply.TTL / RENEWALS_PER_TTL - loop.time())
            except TimeoutError:
                error: Exception = ConnectionLost(f"no answer to keepalives of lease {lease_id:016x}", endpoint="")
            except (ConnectionLost, ServerError) as lost:
                if isinstance(lost, ServerError):
                    if token_refused(lost) and not self._login.anonymous and not new_token:
                        self._login.forget(token)
                        new_token = True
                        continue
                    if not _passing(lost):
                        raise
                error = lost
            else:
                error = ConnectionLost(f"the server ended the keepalives of lease {lease_id:016x}", endpoint="")
            if loop.time() >= give_up_at:
                raise error
            await asyncio.sleep(min(backoff.next_s(), max(give_up_at - loop.time(), 0.0)))

    def _patience_s(self, left_s: float) -> float:
        """How long to wait for one keepalive's answer when the lease has `left_s` seconds for certain."""
        return left_s if left_s > 0 else self._timeout_s if self._timeout_s is not None else 5.0

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
        timeout_s: Timeout = _DEFAULT,
    ) -> rpc.PutResponse:
        """Writes a key. With `lease_id` it is deleted when that lease ends; without, it loses the lease it had.

        `prev_kv`: the reply brings what the key was before. `ignore_value`, `ignore_lease`: the key, which must exist,
        keeps its value or its lease. ServerError NotFound: no such lease.
        """
        request = rpc.PutRequest(
            key=_bytes(key),
            value=_bytes(value),
            lease=lease_id,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
        return await self._call(_PUT, request, rpc.PutResponse, timeout_s)

    async def get(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        limit: int = 0,
        revision: int = 0,
        sort_order: int = 0,
        sort_target: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout_s: Timeout = _DEFAULT,
    ) -> rpc.RangeResponse:
        """Reads one key, or the keys from `key` up to but not including `range_end`.

        range_end     b"" for one key; `prefix_end(key)` for all that begin with it; FROM_KEY for all from it on
        limit         at most so many keys (reply.more says that there are others); 0: all
        revision      the state at that revision; 0: now. OutOfRange when it is compacted or not reached yet
        sort_order, sort_target  numbers of RangeRequest.SortOrder and .SortTarget; by default in key order
        serializable  answer from memory without asking the cluster: quicker, possibly stale
        keys_only, count_only    leave out the values, or everything but reply.count
        min_.., max_..           only keys within these revisions, both included; 0: no bound
        """
        request = rpc.RangeRequest(
            key=_bytes(key),
            range_end=_bytes(range_end),
            limit=limit,
            revision=revision,
            sort_order=cast("rpc.RangeRequest.SortOrder", sort_order),
            sort_target=cast("rpc.RangeRequest.SortTarget", sort_target),
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return await self._call(_RANGE, request, rpc.RangeResponse, timeout_s)

    async def delete(
        self, key: Bytes, *, range_end: Bytes = b"", prev_kv: bool = False, timeout_s: Timeout = _DEFAULT
    ) -> rpc.DeleteRangeResponse:
        """Deletes one key, or a range as in `get`; reply.deleted says how many. `prev_kv`: the reply brings them."""
        request = rpc.DeleteRangeRequest(key=_bytes(key), range_end=_bytes(range_end), prev_kv=prev_kv)
        return await self._call(_DELETE_RANGE, request, rpc.DeleteRangeResponse, timeout_s)

    async def txn(
        self,
        compare: Sequence[rpc.Compare] = (),
        success: Sequence[rpc.RequestOp] = (),
        failure: Sequence[rpc.RequestOp] = (),
        *,
        timeout_s: Timeout = _DEFAULT,
    ) -> rpc.TxnResponse:
        """Carries out `success` if all of `compare` hold, otherwise `failure`, all at one instant (reply.succeeded)."""
        request = rpc.TxnRequest(compare=compare, success=success, failure=failure)
        return await self._call(_TXN, request, rpc.TxnResponse, timeout_s)

    async def compact(
        self, revision: int, *, physical: bool = False, timeout_s: Timeout = _DEFAULT
    ) -> rpc.CompactionResponse:
        """Forgets the history before `revision`. `physical`: answer only when the space is free.

        ServerError OutOfRange: it is compacted already, or not reached yet.
        """
        request = rpc.CompactionRequest(revision=revision, physical=physical)
        return await self._call(_COMPACT, request, rpc.CompactionResponse, timeout_s)

    # --- watch --------------------------------------------------------------------------------------------------

    async def watch(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        filters: Sequence[int] = (),
    ) -> AsyncGenerator[rpc.WatchResponse, None]:
        """Yields the server's responses about changes of a key or, as in `get`, a range: in order, none twice.

        start_revision   the first revision of interest, also a past one; 0: from now on
        prev_kv          each event brings what the key was before
        progress_notify  also yield responses without events, now and then: all up to header.revision was seen
        filters          numbers of WatchCreateRequest.FilterType: kinds of event to leave out

        The events of one revision come in one response. A response with `canceled` is the last: the server ends the
        watch, with the reason in `cancel_reason`, or in `compact_revision` when the start is no longer in the history.
        After a lost connection the watch goes on where it was, however long that takes; only a first connection that
        cannot be made raises ConnectionLost.
        """
        create = rpc.WatchCreateRequest(
            key=_bytes(key),
            range_end=_bytes(range_end),
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            filters=cast("Sequence[rpc.WatchCreateRequest.FilterType]", filters),
            fragment=True,
        )
        created = False
        new_token = False  # whether the token is one that was got because the last was refused
        backoff = _Backoff()
        while True:
            try:
                token = await self._login.token(self.channel, self._timeout_s)
                async with aclosing(self._watch_once(create, token)) as responses:
                    async for response in responses:
                        if watch_refused(response) and not self._login.anonymous and not new_token:
                            self._login.forget(token)
                            new_token = True
                            break
                        new_token = False
                        backoff.reset()
                        if response.created:
                            created = True
                            if not response.canceled:
                                # What happens from here on is ours, also if the connection is lost before it comes.
                                create.start_revision = create.start_revision or response.header.revision + 1
                                continue
                        elif not response.canceled:
                            create.start_revision = max(create.start_revision, _seen_until(response) + 1)
                        yield response
                        if response.canceled:
                            return
            except (ConnectionLost, ServerError) as error:
                if not created or (isinstance(error, ServerError) and not _passing(error)):
                    raise
            await asyncio.sleep(backoff.next_s())

    async def _watch_once(
        self, create: rpc.WatchCreateRequest, token: Token
    ) -> AsyncGenerator[rpc.WatchResponse, None]:
        """The responses of one stream, each whole: what the server has cut into fragments is put together again."""
        whole: rpc.WatchResponse | None = None
        async with self.channel.stream(_WATCH, metadata=(*_HAS_LEADER, *token)) as call:
            await call.send(rpc.WatchRequest(create_request=create))
            self._watching.add(call)
            try:
                async for message in call:
                    response = cast(rpc.WatchResponse, message)
                    if whole is not None:
                        whole.events.extend(response.events)
                        whole.fragment = response.fragment
                        response = whole
                    whole = response if response.fragment else None
                    if whole is None:
                        yield response
            finally:
                self._watching.discard(call)

    async def request_progress(self) -> None:
        """Asks how far each watch of this client is: it yields a response without events once all was sent to it.

        Nothing comes from a watch that has no connection at the moment.
        """
        for call in tuple(self._watching):
            with suppress(ConnectionLost, ServerError):
                await call.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    # --- maintenance --------------------------------------------------------------------------------------------

    async def snapshot(self) -> AsyncGenerator[rpc.SnapshotResponse, None]:
        """A copy of the server's data as a file, in pieces; the last one is the SHA-256 of those before it.

        Takes as long as it takes; a connection that is lost underway is not made again. For root, where users log in.
        """
        new_token = False
        while True:
            token = await self._login.token(self.channel, self._timeout_s)
            begun = False
            try:
                async with self.channel.stream(_SNAPSHOT, metadata=token) as call:
                    await call.send(rpc.SnapshotRequest(), last=True)
                    async for reply in call:
                        begun = True
                        yield cast(rpc.SnapshotResponse, reply)
                    return
            except ServerError as error:
                if begun or new_token or self._login.anonymous or not token_refused(error):
                    raise
                self._login.forget(token)
                new_token = True

    async def _call(self, method: Method, request: Message, reply: type[M], timeout_s: Timeout) -> M:
        return cast(M, await self.call(method, request, timeout_s=timeout_s))


class _Backoff:
    """Waits between attempts: longer each time, and never quite the same for two clients that lost the same server."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def reset(self) -> None:
        self._next_s = 0.0

    def next_s(self) -> float:
        """0 the first time: the connection was fine a moment ago."""
        wait_s, self._next_s = self._next_s, min(max(self._next_s * 2, RECONNECT_FIRST_S), RECONNECT_S_MAX)
        return wait_s * random.uniform(0.5, 1.0)


def prefix_end(prefix: Bytes) -> bytes:
    """The range end for all keys that begin with `prefix`: the prefix with its last byte below 255 raised by one.

    FROM_KEY when there is none to raise. An empty prefix means every key; ask for key b"\\0" then.
    """
    raw = _bytes(prefix).rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else FROM_KEY


def _seen_until(response: rpc.WatchResponse) -> int:
    """The revision up to which a watch has everything after this response.

    Of one with events the header does not say it: history comes in pieces, whose headers all bear the newest revision.
    """
    return response.events[-1].kv.mod_revision if response.events else response.header.revision


def _bytes(text: Bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _passing(error: ServerError) -> bool:
    """Whether a stream that ended so is worth trying again: the server is stopping, starting or without a leader."""
    return error.code in (Code.UNAVAILABLE, Code.CANCELED)


_KV = "/etcdserverpb.KV/"
_LEASE = "/etcdserverpb.Lease/"
_RANGE = BY_PATH[_KV + "Range"]
_PUT = BY_PATH[_KV + "Put"]
_DELETE_RANGE = BY_PATH[_KV + "DeleteRange"]
_TXN = BY_PATH[_KV + "Txn"]
_COMPACT = BY_PATH[_KV + "Compact"]
_WATCH = BY_PATH["/etcdserverpb.Watch/Watch"]
_SNAPSHOT = BY_PATH["/etcdserverpb.Maintenance/Snapshot"]
_LEASE_GRANT = BY_PATH[_LEASE + "LeaseGrant"]
_LEASE_REVOKE = BY_PATH[_LEASE + "LeaseRevoke"]
_LEASE_KEEP_ALIVE = BY_PATH[_LEASE + "LeaseKeepAlive"]
_LEASE_TIME_TO_LIVE = BY_PATH[_LEASE + "LeaseTimeToLive"]
_LEASE_LEASES = BY_PATH[_LEASE + "LeaseLeases"]
