# SPDX-License-Identifier: Apache-2.0
"""The Auth service: logging in, and changing users and roles.

Laws
- The state machine sees only hashes of passwords. A password is in no log, no row and no error.
- A call that has waited for a hash is checked again when it goes on: its caller may have lost the right meanwhile.
- A login is good only if the auth data did not change while the password was checked. Otherwise it is checked anew.

Most requests go straight to the state machine. Afterwards the tokens forget users that were deleted or have a new
password.
"""

import base64
import logging
from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.services.passwords import Failed, Passwords
from lessor.server.services.tokens import Tokens

log = logging.getLogger("lessor")


class Auth:
    """The calls, over the tokens and the passwords of one server."""

    def __init__(self, tokens: Tokens, passwords: Passwords) -> None:
        self._tokens = tokens
        self._passwords = passwords

    def manage(self, core: Core, request: Message) -> bytes:
        """Any request about auth that needs no hash."""
        reply = core.machine.apply_encoded(request, core.turn.now_s())
        if isinstance(request, (rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserChangePasswordRequest)):
            self._tokens.forget_user(request.name)
        elif isinstance(request, rpc_pb2.AuthDisableRequest):
            self._tokens.forget_all()
        return reply

    def add_user(self, core: Core, call: UnaryCall, request: rpc_pb2.AuthUserAddRequest) -> Waiting | None:
        if request.options.no_password:
            call.finish(self.manage(core, request))
            return None
        return self._with_hash(core, call, request)

    def change_password(
        self, core: Core, call: UnaryCall, request: rpc_pb2.AuthUserChangePasswordRequest
    ) -> Waiting | None:
        if not request.password:  # the client has sent a hash
            call.finish(self.manage(core, request))
            return None
        return self._with_hash(core, call, request)

    def _with_hash(self, core: Core, call: UnaryCall, request: Any) -> Waiting:
        """Carries the request out when a hash has taken the place of its password."""
        claimed = core.claimed(call) if core.auth.enabled else None

        def go_on(hashed: bytes) -> None:
            request.hashedPassword = base64.b64encode(hashed).decode()
            call.answer(lambda: self._again(core, claimed, request))

        password, request.password = request.password, ""
        return self._passwords.hash(password, go_on, _failed(call))

    def _again(self, core: Core, claimed: Any, request: Message) -> bytes:
        core.permit_claimed(claimed, request)
        return self.manage(core, request)

    def authenticate(self, core: Core, call: UnaryCall, request: rpc_pb2.AuthenticateRequest) -> Waiting:
        """A token for a name and its password."""
        auth = core.auth
        if not auth.enabled:
            raise errors.AUTH_NOT_ENABLED.error()
        user = auth.users.get(request.name)
        if user is not None and user.no_password:
            raise errors.NO_PASSWORD_USER.error()
        checked_revision = auth.revision

        def go_on(right: bool) -> None:
            if not right:
                log.info("invalid password", extra={"user": request.name})
                call.finish(errors.AUTH_FAILED.error())
            elif auth.revision != checked_revision:
                call.waiting = self.authenticate(core, call, request)
            else:
                call.answer(lambda: self._logged_in(core, request.name))

        hashed = user.password if user is not None else None
        return self._passwords.check(request.password, hashed, go_on, _failed(call))

    def _logged_in(self, core: Core, name: str) -> bytes:
        token = self._tokens.issue(name, core.auth.revision)
        return core.machine.header_field() + rpc_pb2.AuthenticateResponse(token=token).SerializeToString()


def _failed(call: UnaryCall) -> Failed:
    return lambda error: call.finish(as_answer(error, call.method.path))
