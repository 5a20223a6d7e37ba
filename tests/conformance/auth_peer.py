# SPDX-License-Identifier: Apache-2.0
"""Users for the tests: calls in the name of somebody, over gRPC and JSON, and short ways to make users and roles."""

import itertools
from typing import Any

import grpc
from google.protobuf.message import Message

from lessor.api.methods import METHODS, Method
from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.lessor_server import ROOT_PASSWORD
from tests.conformance.subject import Conversation, HttpReply, Subject

READ, WRITE, BOTH = 0, 1, 2
CHEAP = ["--bcrypt-cost=4"]  # the least there is: tests log in often

DENIED = Failure(7, "etcdserver: permission denied")
NOBODY = Failure(3, "etcdserver: user name is empty")
BAD_TOKEN = Failure(16, "etcdserver: invalid auth token")
BAD_LOGIN = Failure(3, "etcdserver: authentication failed, invalid user ID or password")

_METHODS = {f"{method.service}/{method.name}": method for method in METHODS}
_BY_REQUEST: dict[type[Message], Method] = {method.request: method for method in METHODS if method.unary}
_NAMES = itertools.count(1)


def new_name() -> str:
    """A name that no other user or role has."""
    return f"n{next(_NAMES)}"


class As:
    """Somebody who talks to a server: with a token, or without one."""

    def __init__(self, subject: Subject, token: str | None = None, name: str = "") -> None:
        self.subject = subject
        self.token = token
        self.name = name
        self.metadata = [] if token is None else [("token", token)]

    def call(self, request: Message, metadata: list[tuple[str, str]] | None = None) -> Any:
        """The reply, or Failure. `metadata` in place of the token."""
        method = _BY_REQUEST[type(request)]
        stub = self.subject.stub(f"{method.service}/{method.name}")
        try:
            return stub(request, timeout=CALL_S_MAX, metadata=self.metadata if metadata is None else metadata)
        except grpc.RpcError as error:
            status: Any = error
            return Failure(status.code().value[0], status.details())

    def do(self, request: Message) -> Any:
        reply = self.call(request)
        assert not isinstance(reply, Failure), reply
        return reply

    def post(self, path: str, body: Any = None) -> HttpReply:
        return self.subject.post(path, body, **({} if self.token is None else {"Authorization": self.token}))

    def conversation(self, name: str) -> Conversation:
        stub = self.subject.stub(name)
        return Conversation(stub, CALL_S_MAX, self.metadata)

    def keep_alive(self, *lease_ids: int) -> list[Any]:
        """The replies to keepalives on one stream; a Failure at the end where the server ended it so."""
        stream = self.conversation("etcdserverpb.Lease/LeaseKeepAlive")
        stream.send(*(rpc.LeaseKeepAliveRequest(ID=lease_id) for lease_id in lease_ids))
        stream.half_close()
        replies = []
        while (reply := stream.read()) is not None:
            replies.append(reply)
            if isinstance(reply, Failure):
                break
        stream.cancel()
        return replies

    def watch(self, key: bytes, range_end: bytes = b"", **options: Any) -> tuple[Conversation, Any]:
        """An open watch stream, and the first reply on it."""
        stream = self.conversation("etcdserverpb.Watch/Watch")
        create = rpc.WatchCreateRequest(key=key, range_end=range_end, **options)
        stream.send(rpc.WatchRequest(create_request=create))
        return stream, stream.read()

    # --- short ways ---

    def log_in(self, name: str, password: str) -> "As":
        token = self.do(rpc.AuthenticateRequest(name=name, password=password)).token
        return As(self.subject, token, name)

    def add_user(self, *roles: str, name: str = "") -> str:
        name = name or new_name()
        self.do(rpc.AuthUserAddRequest(name=name, password=name))
        for role in roles:
            self.do(rpc.AuthUserGrantRoleRequest(user=name, role=role))
        return name

    def add_role(self, *permissions: tuple[int, bytes, bytes]) -> str:
        name = new_name()
        self.do(rpc.AuthRoleAddRequest(name=name))
        for permission in permissions:
            self.grant(name, *permission)
        return name

    def grant(self, role: str, kind: int, key: bytes, range_end: bytes = b"") -> None:
        permission = auth.Permission(key=key, range_end=range_end)
        permission.permType = kind  # type: ignore[assignment]
        self.do(rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission))

    def user_with(self, *permissions: tuple[int, bytes, bytes]) -> "As":
        """A new user with these permissions, logged in."""
        name = self.add_user(self.add_role(*permissions))
        return self.log_in(name, name)


def enable_auth(subject: Subject) -> As:
    """Switches auth on; returns root."""
    nobody = As(subject)
    nobody.do(rpc.AuthUserAddRequest(name="root", password=ROOT_PASSWORD))
    nobody.do(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
    nobody.do(rpc.AuthEnableRequest())
    return nobody.log_in("root", ROOT_PASSWORD)
