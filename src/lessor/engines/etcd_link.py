# SPDX-License-Identifier: Apache-2.0
"""The connection to an etcd that keeps a log: our own client, with what its errors mean for the log.

Laws
- What a person has to change is a LogRefusedError, which says what. It never names the user or the password.
- Every answer comes from the same etcd cluster as the first one did. After that has changed (an etcd that was restored
  from a backup has a new cluster id) every answer is refused, until the log is opened anew.
- No lease of the etcd is used.

Theory of operation. The asynchronous client runs in the thread that calls, and only while a call is under way: an
append goes through no other thread, which saves a third of its time. Between two calls nobody reads the socket: each
call begins with that, so that it does not begin on a connection which the etcd has closed.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.limits import ENGINE_CONNECT_S_MAX, ENGINE_READ_S_MAX, ENGINE_SLOW_CALL_S_MAX
from lessor.base.printable import escape_unprintable
from lessor.client import (
    AsyncClient,
    Blame,
    ClientClosed,
    ClientError,
    InvalidCertificate,
    LoginFailed,
    ServerError,
    tls_context,
)
from lessor.durable.log import LogError
from lessor.durable.shared_log import LogRefusedError, UnreachableError
from lessor.engines.etcd_url import EtcdUrl

T = TypeVar("T")


class EtcdLink:
    """One log's connection. Calls block, one at a time."""

    def __init__(self, url: EtcdUrl) -> None:
        """Connects nowhere. Raises LogRefusedError: the certificates."""
        self.url = url
        self.etcd_id = 0  # the etcd's own cluster id; 0: not known yet
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        try:
            self.client = self.dial(url.endpoints)
        except (ClientError, ValueError) as error:
            raise LogRefusedError(f"the engine has an address that cannot be used: {one_line(error)}") from None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for what a call of a client of this link returns, or raises its error."""
        if self._closed:
            work.close()
            raise ClientClosed("the way to the engine is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(_behind_news(work))

    def close(self) -> None:
        loop = self._loop
        if loop is not None:
            try:
                self.run(self.client.aclose())
            finally:
                loop.close()
        self._loop, self._closed = None, True

    def dial(self, hosts: Sequence[str]) -> AsyncClient:
        """A client for some of the endpoints, to be used with `run`; whoever asks for it closes it."""
        url = self.url
        scheme = "https" if url.tls else "http"
        context = None
        if url.tls:
            try:
                context = tls_context(ca_file=url.cacert or None, cert_file=url.cert or None, key_file=url.key or None)
            except InvalidCertificate as error:
                raise LogRefusedError(f"the engine's certificates: {one_line(error)}") from None
        return AsyncClient(
            [f"{scheme}://{host}" for host in hosts],
            connect_timeout_s=ENGINE_CONNECT_S_MAX,
            timeout_s=ENGINE_READ_S_MAX,
            ssl=context,
            user=url.user,
            password=url.password,
        )

    def txn(
        self,
        compare: Sequence[rpc.Compare],
        success: Sequence[rpc.RequestOp],
        failure: Sequence[rpc.RequestOp] = (),
        timeout_s: float = ENGINE_SLOW_CALL_S_MAX,
    ) -> rpc.TxnResponse:
        """One txn. Raises ClientError as the client does, and LogRefusedError."""
        reply = self.run(self.client.txn(compare, success, failure, timeout_s=timeout_s))
        self._same(reply.header.cluster_id)
        return reply

    def look(self, *steps: rpc.RequestOp, timeout_s: float = ENGINE_SLOW_CALL_S_MAX) -> rpc.TxnResponse:
        """A txn that only reads, at one instant and linearizable. Raises UnreachableError, LogRefusedError."""
        try:
            return self.txn((), steps, timeout_s=timeout_s)
        except ClientError as error:
            raise self.trouble(error, UnreachableError) from None

    def change(self, compare: Sequence[rpc.Compare], steps: Sequence[rpc.RequestOp]) -> rpc.TxnResponse:
        """A txn that may be repeated without harm. Raises UnreachableError, LogRefusedError."""
        try:
            return self.txn(compare, steps)
        except ClientError as error:
            raise self.trouble(error, UnreachableError) from None

    def _same(self, etcd_id: int) -> None:
        if self.etcd_id and etcd_id != self.etcd_id:
            raise LogRefusedError(
                f"the etcd is another one than before (cluster {etcd_id:x}, it was {self.etcd_id:x}): if it was"
                " restored from a backup, start this node again, and it will compare its history with the log's"
            )

    def trouble(self, error: ClientError, otherwise: type[LogError]) -> LogError:
        """What a failed call is for those who use the log: LogRefusedError, or `otherwise`."""
        reason = self._refusal(error)
        if reason:
            return LogRefusedError(reason)
        return otherwise(f"etcd at {', '.join(self.url.endpoints)}: {one_line(error)}")

    def _refusal(self, error: ClientError) -> str:
        if not isinstance(error, ServerError):
            return ""
        if isinstance(error, LoginFailed) and error.blame is Blame.CALLER:
            return "the etcd does not know the user, or not with this password: look at USER:PASSWORD@ of the engine"
        if error.message == errors.USER_EMPTY.message:
            return "the etcd wants a user: write USER:PASSWORD@ into the engine's address, or user= and password-file="
        if error.message == errors.PERMISSION_DENIED.message:
            prefix = self.url.prefix.decode()
            return (
                f"the engine's user may not read and write below {prefix}:"
                f" etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}"
            )
        if error.message == errors.NO_SPACE.message:
            return (
                "the etcd is full (alarm NOSPACE): compact and defragment it or raise its --quota-backend-bytes,"
                " then: etcdctl alarm disarm"
            )
        if error.message == errors.CORRUPT.message:
            return "the etcd has the alarm CORRUPT: its members differ, and the one that is wrong has to be replaced"
        if error.message == errors.REQUEST_TOO_LARGE.message:
            return "the etcd takes too small requests only: set its --max-request-bytes to 1572864 or more"
        return f"the etcd refuses: {one_line(error)}" if error.blame is Blame.CALLER else ""


async def _behind_news(work: Coroutine[Any, Any, T]) -> T:
    """`work`, behind what the sockets have to say: one step of the loop reads it, the next one tells the client."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return await work


def one_line(error: Exception) -> str:
    """The text of an error, of which a server may have chosen a part."""
    return escape_unprintable(str(error), lambda char: f"\\x{ord(char):02x}")[:500]
