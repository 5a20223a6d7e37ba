# SPDX-License-Identifier: Apache-2.0
"""The errors of calls, by who can do something about them and by whether the call may be repeated.

    ClientError
      InvalidEndpoint    the caller: an address that cannot be read
      InvalidCertificate the caller: a certificate or key file that cannot be used
      ClientClosed       the caller: the client was closed
      UsedAfterFork      the caller: the client belongs to the parent process
      ServerError        the server refused the call; nothing took effect, except where said below
        LoginFailed      it refused the user and password, before the call itself
      WatchCanceled      the server ended a watch
        Compacted        because the history that the watch needs is gone
      ConnectionLost     the network, or a server that is not there
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
        return f"ServerError({self.code.name}, {self.message!r})"


_CALLERS_FAULT = frozenset(
    {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED, Code.OUT_OF_RANGE),
        *(Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED),
    }
)


class LoginFailed(ServerError):  # noqa: N818 - it says what happened
    """The server knows no such user, or not with this password. The call itself was not made."""


class ConnectionLost(ClientError):  # noqa: N818 - it says what happened
    """No connection could be made, or it ended before the answer came. `endpoint`: where it led or should have led.

    `taken`: whether something listens there that took the connection and then ended it. False: nothing is known of it.
    """

    blame = Blame.NETWORK

    def __init__(self, text: str, *, endpoint: str, taken: bool = False, outcome_unknown: bool = False) -> None:
        super().__init__(text, outcome_unknown=outcome_unknown)
        self.endpoint = endpoint
        self.taken = taken


class CallTimeout(ClientError):  # noqa: N818 - it says what happened
    """The answer did not come within `timeout_s` seconds."""

    blame = Blame.NETWORK

    def __init__(self, text: str, *, timeout_s: float, outcome_unknown: bool = False) -> None:
        super().__init__(text, outcome_unknown=outcome_unknown)
        self.timeout_s = timeout_s


class WatchCanceled(ClientError):  # noqa: N818 - it says what happened
    """The server ended a watch and will not go on with it. `reason`: the server's words."""

    blame = Blame.SERVER

    def __init__(self, reason: str) -> None:
        super().__init__(f"the watch was canceled: {reason}")
        self.reason = reason


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


class ConnectionLostInDoubt(ConnectionLost, OutcomeUnknown):
    """A ConnectionLost after which a write may have happened."""


class CallTimeoutInDoubt(CallTimeout, OutcomeUnknown):
    """A CallTimeout after which a write may have happened."""


# `raise ConnectionLost(..., outcome_unknown=True)` raises the second class of its line.
_IN_DOUBT: dict[type[ClientError], type[Any]] = {
    ServerError: ServerErrorInDoubt,
    ConnectionLost: ConnectionLostInDoubt,
    CallTimeout: CallTimeoutInDoubt,
}
