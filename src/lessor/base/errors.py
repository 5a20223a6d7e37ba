# SPDX-License-Identifier: Apache-2.0
"""The errors that a client can get: etcd's text, the gRPC code, the HTTP status.

Law: Go clients recognise an error by its text, so each text is exact, prefix included. Raise one of the ready-made
errors below (`raise errors.LEASE_NOT_FOUND.error()`); make an `EtcdError` by hand only where the text contains a value.
"""

from dataclasses import dataclass
from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes, by number."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# The HTTP status of each code in the JSON gateway (grpc-gateway v2's table).
HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class EtcdError(Exception):
    """The answer of a call in place of a reply. Nothing of the call took effect."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def bare(self) -> "EtcdError":
        """The error itself, without its traceback and its causes, whose frames often refer to it."""
        self.__context__ = self.__cause__ = None
        return self.with_traceback(None)

    @property
    def go_text(self) -> str:
        """The error as Go's gRPC prints it: the reason that a refused watch gives."""
        return f"rpc error: code = {self.code.name.title().replace('_', '')} desc = {self.message}"


@dataclass(frozen=True)
class ErrorText:
    """A row of etcd's error table. `error()` makes a new exception each time, so that no traceback is shared."""

    code: Code
    message: str

    def error(self) -> EtcdError:
        return EtcdError(self.code, self.message)


def _server(code: Code, text: str) -> ErrorText:
    return ErrorText(code, "etcdserver: " + text)


EMPTY_KEY = _server(Code.INVALID_ARGUMENT, "key is not provided")
KEY_NOT_FOUND = _server(Code.INVALID_ARGUMENT, "key not found")
VALUE_PROVIDED = _server(Code.INVALID_ARGUMENT, "value is provided")
LEASE_PROVIDED = _server(Code.INVALID_ARGUMENT, "lease is provided")
TOO_MANY_OPS = _server(Code.INVALID_ARGUMENT, "too many operations in txn request")
DUPLICATE_KEY = _server(Code.INVALID_ARGUMENT, "duplicate key given in txn request")
INVALID_CLIENT_API_VERSION = _server(Code.INVALID_ARGUMENT, "invalid client api version")
INVALID_SORT_OPTION = _server(Code.INVALID_ARGUMENT, "invalid sort option")
REQUEST_TOO_LARGE = _server(Code.INVALID_ARGUMENT, "request is too large")
COMPACTED = _server(Code.OUT_OF_RANGE, "mvcc: required revision has been compacted")
FUTURE_REVISION = _server(Code.OUT_OF_RANGE, "mvcc: required revision is a future revision")
LEASE_TTL_TOO_LARGE = _server(Code.OUT_OF_RANGE, "too large lease TTL")
NO_SPACE = _server(Code.RESOURCE_EXHAUSTED, "mvcc: database space exceeded")
LEASE_NOT_FOUND = _server(Code.NOT_FOUND, "requested lease not found")
MEMBER_NOT_FOUND = _server(Code.NOT_FOUND, "member not found")
MEMBER_URLS_INVALID = _server(Code.INVALID_ARGUMENT, "given member URLs are invalid")
PEER_URLS_EXIST = _server(Code.FAILED_PRECONDITION, "Peer URLs already exists")
# On the wire etcd gives these two the code Unknown.
NOT_ENOUGH_STARTED = _server(Code.UNKNOWN, "re-configuration failed due to not enough started members")
TOO_MANY_REQUESTS = _server(Code.UNKNOWN, "too many requests")
SNAPSHOT_NOT_READ = _server(Code.RESOURCE_EXHAUSTED, "snapshot was not read fast enough and has been ended")
TOO_MANY_LEARNERS = _server(Code.FAILED_PRECONDITION, "too many learner members in cluster")
NOT_A_LEARNER = _server(Code.FAILED_PRECONDITION, "can only promote a learner member")
BAD_LEADER_TRANSFEREE = _server(Code.FAILED_PRECONDITION, "bad leader transferee")
WRONG_DOWNGRADE_FORMAT = _server(Code.INVALID_ARGUMENT, "wrong downgrade target version format")
INVALID_DOWNGRADE_TARGET = _server(Code.INVALID_ARGUMENT, "invalid downgrade target version")
DOWNGRADE_IN_PROGRESS = _server(Code.FAILED_PRECONDITION, "cluster has a downgrade job in progress")
UNKNOWN_METHOD = _server(Code.UNKNOWN, "unknown method")
CORRUPT = _server(Code.DATA_LOSS, "corrupt cluster")
LEASE_EXISTS = _server(Code.FAILED_PRECONDITION, "lease already exists")
USER_EMPTY = _server(Code.INVALID_ARGUMENT, "user name is empty")
ROLE_EMPTY = _server(Code.INVALID_ARGUMENT, "role name is empty")
# etcd has no such error: storing a longer name ends it.
NAME_TOO_LONG = _server(Code.INVALID_ARGUMENT, "user or role name is longer than 32768 bytes")
AUTH_FAILED = _server(Code.INVALID_ARGUMENT, "authentication failed, invalid user ID or password")
PERMISSION_NOT_GIVEN = _server(Code.INVALID_ARGUMENT, "permission not given")
INVALID_AUTH_MANAGEMENT = _server(Code.INVALID_ARGUMENT, "invalid auth management")
OLD_AUTH_REVISION = _server(Code.INVALID_ARGUMENT, "revision of auth store is old")
ROOT_USER_MISSING = _server(Code.FAILED_PRECONDITION, "root user does not exist")
ROOT_ROLE_MISSING = _server(Code.FAILED_PRECONDITION, "root user does not have root role")
USER_EXISTS = _server(Code.FAILED_PRECONDITION, "user name already exists")
USER_NOT_FOUND = _server(Code.FAILED_PRECONDITION, "user name not found")
ROLE_EXISTS = _server(Code.FAILED_PRECONDITION, "role name already exists")
ROLE_NOT_FOUND = _server(Code.FAILED_PRECONDITION, "role name not found")
ROLE_NOT_GRANTED = _server(Code.FAILED_PRECONDITION, "role is not granted to the user")
PERMISSION_NOT_GRANTED = _server(Code.FAILED_PRECONDITION, "permission is not granted to the role")
PERMISSION_DENIED = _server(Code.PERMISSION_DENIED, "permission denied")
AUTH_NOT_ENABLED = _server(Code.FAILED_PRECONDITION, "authentication is not enabled")
# The texts of these three are those of etcd's libraries, without a code.
NO_PASSWORD_USER = ErrorText(Code.UNKNOWN, "auth: authentication failed, password was given for no password user")
VERIFY_ONLY_KEY = ErrorText(Code.UNKNOWN, "auth: token signing attempted with verify-only key")
PASSWORD_TOO_LONG = ErrorText(Code.UNKNOWN, "bcrypt: password length exceeds 72 bytes")
INVALID_AUTH_TOKEN = _server(Code.UNAUTHENTICATED, "invalid auth token")
SERVER_STOPPED = _server(Code.UNAVAILABLE, "server stopped")
NO_LEADER = _server(Code.UNAVAILABLE, "no leader")
LEADER_CHANGED = _server(Code.UNAVAILABLE, "leader changed")
LEADER_LOST = _server(Code.UNAVAILABLE, "request timed out, possibly due to previous leader failure")
WATCH_CANCELED = _server(Code.CANCELED, "watch canceled")
REQUEST_CANCELED = _server(Code.CANCELED, "request canceled")
MALFORMED_MESSAGE = ErrorText(Code.INTERNAL, "grpc: error unmarshalling request: malformed message")
MALFORMED_IN_STREAM = ErrorText(Code.INTERNAL, "grpc: failed to unmarshal the received message: malformed message")
# A request's body that ends too early, in the words of grpc-go: inside the five bytes before a message, or inside the
# message.
NO_MESSAGE = ErrorText(Code.UNKNOWN, "EOF")
HALF_A_MESSAGE = ErrorText(Code.UNKNOWN, "unexpected EOF")
HALF_A_MESSAGE_IN_STREAM = ErrorText(Code.INTERNAL, "unexpected EOF")
NO_REQUEST = ErrorText(
    Code.INTERNAL, "cardinality violation: received no request message from non-client-streaming RPC"
)
SEVERAL_REQUESTS = ErrorText(
    Code.INTERNAL, "cardinality violation: received multiple request messages for non-client-streaming RPC"
)
DEADLINE_EXCEEDED = ErrorText(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
# Of Lessor's own calls.
UNKNOWN_LEASE_ORDER = ErrorText(Code.INVALID_ARGUMENT, "lessor: unknown order of leases")
INVALID_PAGE_TOKEN = ErrorText(Code.INVALID_ARGUMENT, "lessor: page_token is not from a list in this order")
REPLY_TOO_LARGE = ErrorText(Code.RESOURCE_EXHAUSTED, "lessor: the reply is too large; read in pages, with a limit")
TXN_LOOKS_TOO_FAR = ErrorText(
    Code.RESOURCE_EXHAUSTED, "lessor: compares and ranges of a txn that may write cover too many keys; read them apart"
)
LEASE_WATCH_LAGS = ErrorText(
    Code.RESOURCE_EXHAUSTED, "lessor: the lease events were not read in time; list the leases and watch anew"
)
