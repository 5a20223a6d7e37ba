# SPDX-License-Identifier: Apache-2.0
"""The errors a client can be told: etcd's text, the gRPC code, the HTTP status.

Go clients recognise an error by its text, so each text is exact, prefix included. Raise one of the ready-made errors
below (`raise errors.LEASE_NOT_FOUND.error()`); make an `EtcdError` by hand only where the text carries a value.
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


# How the JSON gateway turns a code into an HTTP status (grpc-gateway v2's table).
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
    """What a call answers instead of a reply. Nothing of the call took effect."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]


@dataclass(frozen=True)
class ErrorText:
    """A row of etcd's error table. `error()` makes a fresh exception of it, so that no traceback is shared."""

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
LEASE_EXISTS = _server(Code.FAILED_PRECONDITION, "lease already exists")
AUTH_NOT_ENABLED = _server(Code.FAILED_PRECONDITION, "authentication is not enabled")
INVALID_AUTH_TOKEN = _server(Code.UNAUTHENTICATED, "invalid auth token")
SERVER_STOPPED = _server(Code.UNAVAILABLE, "server stopped")
WATCH_CANCELED = _server(Code.CANCELED, "watch canceled")
REQUEST_CANCELED = _server(Code.CANCELED, "request canceled")
DEADLINE_EXCEEDED = ErrorText(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
