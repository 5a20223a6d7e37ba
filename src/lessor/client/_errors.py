# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a call, split by who is to blame and by whether it may be repeated.

    ClientError
      InvalidEndpoint    the caller: an address that cannot be read
      InvalidCertificate the caller: a certificate or key file that cannot be used
      ServerError        the server answered, and the answer is no; nothing took effect, except where said below
        LoginFailed      the no was to the user and password, before the call itself
      ConnectionLost     the network, or a server that is not there
      CallTimeout        the caller's patience ended first

`outcome_unknown` on each says whether the call may have taken effect nevertheless. When it is False, a repetition is
safe. It is never True for a call that only reads.
"""

from lessor.base.errors import Code


class ClientError(Exception):
    """Any failed call. `outcome_unknown`: the call may have taken effect; look before repeating it."""

    def __init__(self, text: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(text)
        self.outcome_unknown = outcome_unknown


class InvalidEndpoint(ClientError, ValueError):  # noqa: N818 - it says what happened
    """An endpoint that is neither host:port, http(s)://host:port nor unix(s):///path. Nothing was sent."""


class InvalidCertificate(ClientError, ValueError):  # noqa: N818 - it says what happened
    """A file for TLS that is missing, unreadable, or not what it should be. Nothing was sent."""


class ServerError(ClientError):
    """The server's no: `code` is the gRPC status, `message` the server's text, which for etcd's errors is etcd's.

    Most codes mean that nothing took effect. With those that say that the server gave up underway (Unavailable,
    Canceled, DeadlineExceeded, Unknown, Internal, DataLoss, Aborted) the outcome of a write is unknown: "etcdserver:
    request timed out" is said of what may yet happen.
    """

    def __init__(self, code: Code, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message, outcome_unknown=outcome_unknown)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"ServerError({self.code.name}, {self.message!r})"


class LoginFailed(ServerError):  # noqa: N818 - it says what happened
    """The server knows no such user, or not with this password. The call itself was not made."""


class ConnectionLost(ClientError):  # noqa: N818 - it says what happened
    """No connection could be made, or it ended before the answer came. `endpoint`: where it led or should have led."""

    def __init__(self, text: str, *, endpoint: str, outcome_unknown: bool = False) -> None:
        super().__init__(text, outcome_unknown=outcome_unknown)
        self.endpoint = endpoint


class CallTimeout(ClientError):  # noqa: N818 - it says what happened
    """The answer did not come within `timeout_s` seconds."""

    def __init__(self, text: str, *, timeout_s: float, outcome_unknown: bool = False) -> None:
        super().__init__(text, outcome_unknown=outcome_unknown)
        self.timeout_s = timeout_s
