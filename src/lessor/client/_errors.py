# SPDX-License-Identifier: Apache-2.0
"""The errors of calls, by who can do something about them and by whether the call may be repeated.

    ClientError
      InvalidEndpoint    the caller: an address that cannot be read
      InvalidCertificate the caller: a certificate or key file that cannot be used
      ClientClosed       the caller: the client was closed
      UsedAfterFork      the caller: the client belongs to the parent process
      WrongLoop          the caller: the client belongs to another event loop, or there is none of asyncio's
      ServerError        the server refused the call; nothing took effect, except where said below
        LoginFailed      it refused the user and password, before the call itself
        TooLarge         the caller: a message is larger than the client's own limits
      WatchCanceled      the server ended a watch, or does not allow it
        Compacted        because the history that the watch needs is gone
      ConnectionLost     the network, or a server that is not there; the caller, where TLS is set up wrongly
      CallTimeout        no answer came in the time that the caller allows
      LeaseLost          a lease has ended, or may have ended, without its owner's doing
      NotLeader          an election was lost, or never won

`outcome_unknown` on each says whether the call may have taken effect nevertheless; those that may have are
`OutcomeUnknown` as well, so that one `except` finds them all. When it is False, a repetition is safe. It is never True
for a call that only reads. `blame` says who can do something about it.
"""

from enum import StrEnum
from typing import Any, Self

from lessor.base.errors import Code


class Blame(StrEnum):
    """Who can do something about an error."""

    CALLER = "caller"  # the same call will fail again
    SERVER = "server"  # it is stopping, overloaded, without a leader, broken
    NETWORK = "network"  # or a server that is not there at all: they look the same from here


class ClientError(Exception):
    """Any failed call. `outcome_unknown`: the call may have taken effect; look before repeating it."""

    blame = Blame.CALLER

    def __new__(cls, *args: Any, outcome_unknown: bool = False, **kinds: Any) -> Self:
        kind = _IN_DOUBT.get(cls, cls) if outcome_unknown else cls
        return super().__new__(kind, *args)

    def __init__(self, text: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(text)
        self.outcome_unknown = outcome_unknown

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors can be copied and sent to other processes."""
        return _again, (type(self), self.args, self.__dict__.copy())


def _again(kind: type[ClientError], args: tuple[Any, ...], state: dict[str, Any]) -> ClientError:
    error = Exception.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class OutcomeUnknown(ClientError):  # noqa: N818 - it says what happened
    """A call that changes something failed, and the failure does not show whether it did. Never raised by itself.

    Look before repeating it: read the key, or make the change a txn that is safe to repeat.
    """


class InvalidEndpoint(ClientError, ValueError):  # noqa: N818 - it says what happened
    """An endpoint that is neither host:port, http(s)://host:port nor unix(s):///path. Nothing was sent."""


class InvalidCertificate(ClientError, ValueError):  # noqa: N818 - it says what happened
    """A file for TLS that is missing, unreadable, or not what it should be. Nothing was sent."""


class ClientClosed(ClientError, RuntimeError):  # noqa: N818 - it says what happened
    """The client was closed before the call, or during it."""


class UsedAfterFork(ClientError, RuntimeError):  # noqa: N818 - it says what happened
    """The client's connection and thread belong to the parent process: make one in the child. Nothing was sent."""


class WrongLoop(ClientError, RuntimeError):  # noqa: N818 - it says what happened
    """An AsyncClient was used in another event loop than at first, or under trio, or in no loop. Nothing was sent.

    Make one client in each loop, or use `Client`, which has a loop of its own.
    """


class ServerError(ClientError):
    """The server refused: `code` is the gRPC status, `message` the server's text, which for etcd's errors is etcd's.

    Most codes mean that nothing took effect. With those that say that the server gave up underway (Unavailable,
    Canceled, DeadlineExceeded, Unknown, Internal, DataLoss, Aborted) the outcome of a write is unknown: a write that
    failed with "etcdserver: request timed out" may yet happen.
    """

    def __init__(self, code: Code, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message, outcome_unknown=outcome_unknown)
        self.code = code
        self.message = message
        self.blame = Blame.CALLER if code in _CALLERS_FAULT else Blame.SERVER

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.message!r})"


_CALLERS_FAULT = frozenset(
    {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED, Code.OUT_OF_RANGE),
        *(Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED),
    }
)


class TooLarge(ServerError):  # noqa: N818 - it says what happened
    """A request or a reply is larger than the client's own limits allow: see `request_bytes_max`, `reply_bytes_max`.

    A request was not sent. Of a write whose reply is too large the outcome is unknown.
    """

    def __init__(self, code: Code, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(code, message, outcome_unknown=outcome_unknown)
        self.blame = Blame.CALLER


class LoginFailed(ServerError):  # noqa: N818 - it says what happened
    """The server knows no such user, or not with this password. The call itself was not made."""


class Trouble(StrEnum):
    """What is wrong between two sides that reach each other, where the first bytes show it. See `ConnectionLost`."""

    NONE = ""
    MAYBE_TLS = "maybe tls"  # it closes a connection without TLS at once, as a server does that speaks TLS
    NO_TLS = "no tls"  # it does not speak TLS
    MAYBE_NO_TLS = "maybe no tls"  # it closes the connection in the handshake, as a server does that speaks none
    UNKNOWN_CA = "unknown ca"  # no authority that we trust vouches for its certificate
    WRONG_NAME = "wrong name"  # its certificate is for another name
    OWN_CERTIFICATE = "own certificate"  # it wants a certificate from us, or another one

    @property
    def certain(self) -> bool:
        """Whether another attempt cannot succeed until somebody changes something."""
        return self not in (Trouble.NONE, Trouble.MAYBE_TLS, Trouble.MAYBE_NO_TLS)


# What mends it, in terms of this library.
_MENDS = {
    Trouble.MAYBE_TLS: "if it speaks TLS, write https:// or pass ssl=tls_context(...)",
    Trouble.NO_TLS: "write http:// and leave ssl out",
    Trouble.MAYBE_NO_TLS: "if it speaks no TLS, write http:// and leave ssl out",
    Trouble.UNKNOWN_CA: "name its authority with ssl=tls_context(ca_file=...)",
    Trouble.WRONG_NAME: "name the certificate's host with server_name=...",
    Trouble.OWN_CERTIFICATE: "show it a certificate with ssl=tls_context(cert_file=..., key_file=...)",
}


class ConnectionLost(ClientError):  # noqa: N818 - it says what happened
    """No connection could be made, or it ended before the answer came. `endpoint`: where it led or should have led.

    `taken`: whether something listens there that took the connection and then ended it. False: nothing is known of it.
    `trouble`: what is wrong with TLS; the text then ends with the option that mends it, and `what` is without that.
    """

    blame = Blame.NETWORK

    def __init__(
        self,
        text: str,
        *,
        endpoint: str,
        taken: bool = False,
        trouble: Trouble = Trouble.NONE,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(f"{text}; {_MENDS[trouble]}" if trouble else text, outcome_unknown=outcome_unknown)
        self.what = text
        self.endpoint = endpoint
        self.taken = taken
        self.trouble = trouble
        if trouble.certain:
            self.blame = Blame.CALLER


class CallTimeout(ClientError):  # noqa: N818 - it says what happened
    """The answer did not come within `timeout_s` seconds."""

    blame = Blame.NETWORK

    def __init__(self, text: str, *, timeout_s: float, outcome_unknown: bool = False) -> None:
        super().__init__(text, outcome_unknown=outcome_unknown)
        self.timeout_s = timeout_s


class WatchCanceled(ClientError):  # noqa: N818 - it says what happened
    """The server ended a watch and will not go on with it. `reason`: the server's words.

    `code`: the gRPC status in those words, or None. It decides who is to blame, as for ServerError: a watch on keys
    that the user may not read is the caller's fault.
    """

    blame = Blame.SERVER

    def __init__(self, reason: str) -> None:
        super().__init__(f"the watch was canceled: {reason}")
        self.reason = reason
        self.code = _code_in(reason)
        if self.code in _CALLERS_FAULT or reason in _WATCHES_THAT_CANNOT_BE:
            self.blame = Blame.CALLER


# etcd's words for a request that no server would take; they come without a code.
_WATCHES_THAT_CANNOT_BE = frozenset(
    {
        "mvcc: watcher range is empty",
        "mvcc: duplicate watch ID provided on the WatchStream",
    }
)


def _code_in(reason: str) -> Code | None:
    """The status in Go's text of an error: `rpc error: code = PermissionDenied desc = ...`."""
    prefix, _, rest = reason.partition("rpc error: code = ")
    name = rest.partition(" ")[0]
    if prefix:
        return None
    return next((code for code in Code if code.name.title().replace("_", "") == name), None)


class Compacted(WatchCanceled):
    """The changes that a watch needs next are no longer in the history.

    `compact_revision` is the oldest revision that can still be watched, `start_revision` the one that was wanted. The
    changes between them cannot be got any more: read the keys anew, and watch from that reply's header.revision + 1.
    """

    blame = Blame.CALLER

    def __init__(self, start_revision: int, compact_revision: int) -> None:
        super().__init__(f"revision {start_revision} is compacted; the history begins at {compact_revision}")
        self.start_revision = start_revision
        self.compact_revision = compact_revision


class LeaseLost(ClientError):  # noqa: N818 - it says what happened
    """A lease has ended without its owner's doing, or may have ended: nothing confirms any more that it lives.

    Whatever the lease protected may belong to somebody else by now. `lease_id`, and `reason` in words.
    """

    blame = Blame.NETWORK

    def __init__(self, lease_id: int, reason: str) -> None:
        super().__init__(f"lease {lease_id:016x} is lost: {reason}")
        self.lease_id = lease_id
        self.reason = reason


class NotLeader(ClientError):  # noqa: N818 - it says what happened
    """The key of a candidacy, for a lock or in an election, is gone: somebody deleted it, or it was never there."""


class ServerErrorInDoubt(ServerError, OutcomeUnknown):  # noqa: N818 - it says what happened
    """A ServerError after which a write may have happened."""


class TooLargeInDoubt(TooLarge, OutcomeUnknown):
    """A TooLarge after which a write may have happened."""


class ConnectionLostInDoubt(ConnectionLost, OutcomeUnknown):
    """A ConnectionLost after which a write may have happened."""


class CallTimeoutInDoubt(CallTimeout, OutcomeUnknown):
    """A CallTimeout after which a write may have happened."""


# `raise ConnectionLost(..., outcome_unknown=True)` raises the second class of its line.
_IN_DOUBT: dict[type[ClientError], type[Any]] = {
    ServerError: ServerErrorInDoubt,
    TooLarge: TooLargeInDoubt,
    ConnectionLost: ConnectionLostInDoubt,
    CallTimeout: CallTimeoutInDoubt,
}
