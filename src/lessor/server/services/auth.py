# SPDX-License-Identifier: Apache-2.0
"""The Auth service: logging in, and changing users and roles.

Laws
- The state machine sees only hashes of passwords. A password is in no log, no row and no error.
- A call that has waited for a hash is checked again when it goes on: its caller may have lost the right meanwhile.
- A login is good only if the auth data did not change while the password was checked. Otherwise it is checked anew.
- A server that has handed the lead over meanwhile changes nothing: the leader is asked to log in, other calls fail.
- A call that waits for a hash keeps the name of its user, and of its request nothing else that a peer could make large.
  A name is refused before that when no user can have it, see AUTH_NAME_BYTES_MAX.
- Failed logins cannot fill the log: of a flood only a part is logged, and of a long name only the beginning.

Most requests go straight to the state machine. Afterwards the tokens forget users that were deleted or have a new
password.
"""

import base64
import logging
from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.loop.fair_queue import Peer
from lessor.server.observe.logs import Sparing
from lessor.server.services.passwords import Failed, Passwords
from lessor.server.services.tokens import Tokens
from lessor.state.auth import check_name

log = logging.getLogger("lessor")


class Auth:
    """The calls, over the tokens and the passwords of one server."""

    def __init__(self, tokens: Tokens, passwords: Passwords) -> None:
        self._tokens = tokens
        self._passwords = passwords
        self._failures = FailedLogins()

    def manage(self, core: Core, request: Message) -> bytes:
        """Any request about auth that needs no hash."""
        reply = core.machine.apply_encoded(request, core.turn.now_s())
        if isinstance(request, (rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserChangePasswordRequest)):
            self._tokens.forget_user(request.name)
        elif isinstance(request, rpc_pb2.AuthDisableRequest):
            self._tokens.forget_all()
        return reply

    def add_user(self, core: Core, call: UnaryCall, request: rpc_pb2.AuthUserAddRequest) -> Waiting | None:
        check_name(request.name)
        if request.options.no_password:
            call.finish(self.manage(core, request))
            return None
        kept = rpc_pb2.AuthUserAddRequest(name=request.name)
        return self._with_hash(core, call, kept, request.password)

    def change_password(
        self, core: Core, call: UnaryCall, request: rpc_pb2.AuthUserChangePasswordRequest
    ) -> Waiting | None:
        if not request.password:  # the client has sent a hash
            call.finish(self.manage(core, request))
            return None
        check_name(request.name)
        kept = rpc_pb2.AuthUserChangePasswordRequest(name=request.name)
        return self._with_hash(core, call, kept, request.password)

    def _with_hash(self, core: Core, call: UnaryCall, request: Any, password: str) -> Waiting:
        """Carries the request out with the hash of the password."""
        claimed = core.claimed(call) if core.auth.enabled else None

        def go_on(hashed: bytes) -> None:
            request.hashedPassword = base64.b64encode(hashed).decode()
            call.answer(lambda: self._again(core, claimed, request))

        return self._passwords.hash(password, _peer(call, request.name), go_on, _failed(call))

    def _again(self, core: Core, claimed: Any, request: Message) -> bytes:
        if core.elsewhere is not None:
            raise errors.LEADER_CHANGED.error()
        core.permit_claimed(claimed, request)
        return self.manage(core, request)

    def authenticate(self, core: Core, call: UnaryCall, request: rpc_pb2.AuthenticateRequest) -> Waiting:
        """A token for a name and its password."""
        if not core.auth.enabled:
            raise errors.AUTH_NOT_ENABLED.error()
        check_name(request.name)
        # The copy of a long password keeps its beginning only, which is all that counts.
        return self._check(core, call, request.name, request.password[: limits.PASSWORD_BYTES_MAX])

    def _check(self, core: Core, call: UnaryCall, name: str, password: str) -> Waiting:
        auth = core.auth
        user = auth.users.get(name)
        if user is not None and user.no_password:
            raise errors.NO_PASSWORD_USER.error()
        checked_revision = auth.revision

        def go_on(right: bool) -> None:
            if core.elsewhere is not None:
                call.wait_no_more()
                call.serve(rpc_pb2.AuthenticateRequest(name=name, password=password))
            elif not right:
                self._failures.add(name, core.turn.now_s())
                call.finish(errors.AUTH_FAILED.error())
            elif auth.revision != checked_revision:
                call.waiting = self._check(core, call, name, password)
            else:
                call.answer(lambda: self._logged_in(core, name))

        hashed = user.password if user is not None else None
        return self._passwords.check(password, hashed, _peer(call, name), go_on, _failed(call))

    def _logged_in(self, core: Core, name: str) -> bytes:
        token = self._tokens.issue(name, core.auth.revision)
        return core.machine.header_field() + rpc_pb2.AuthenticateResponse(token=token).SerializeToString()


class FailedLogins:
    """The log's lines about failed logins: FAILED_LOGINS_LOGGED_PER_S_MAX a second, then how many were left out."""

    __slots__ = ("_sparing",)

    def __init__(self) -> None:
        self._sparing = Sparing(limits.FAILED_LOGINS_LOGGED_PER_S_MAX, 1.0)

    def add(self, name: str, now_s: float) -> None:
        left_out = self._sparing.take(now_s)
        if left_out is None:
            return
        cut = limits.LOGGED_NAME_CHARACTERS_MAX
        extra: dict[str, Any] = {"user": name if len(name) <= cut else f"{name[:cut]}..."}
        if left_out:
            extra["left-out-before"] = left_out
        log.info("invalid password", extra=extra)


def _peer(call: UnaryCall, name: str) -> Peer:
    return Peer(call.held, call.held.address, name)


def _failed(call: UnaryCall) -> Failed:
    return lambda error: call.finish(as_answer(error, call.method.path))
