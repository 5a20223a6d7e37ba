# SPDX-License-Identifier: Apache-2.0
"""The Auth service: logging in, and changing users and roles.

Laws
- The state machine sees hashes of passwords only; a password is in no log, no row and no error.
- What waits for a hash is checked again when it goes on: the caller may have lost the right meanwhile.
- A login is good only if the auth data did not change while the password was checked; otherwise it is checked anew.

Most requests go straight to the state machine; afterwards the tokens hear of users that went or have a new password.
"""

import base64
import logging
from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.server.loop.bugs import told
from lessor.server.loop.core import Core, UnaryCall, Waiting
from lessor.server.services.passwords import Failed

log = logging.getLogger("lessor")


def manage(core: Core, request: Message) -> bytes:
    """Any request about auth that needs no hash."""
    reply = core.machine.apply_encoded(request, core.turn.now_s())
    if isinstance(request, (rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserChangePasswordRequest)):
        core.tokens.forget_user(request.name)
    elif isinstance(request, rpc_pb2.AuthDisableRequest):
        core.tokens.forget_all()
    return reply


def add_user(core: Core, call: UnaryCall, request: rpc_pb2.AuthUserAddRequest) -> Waiting | None:
    if request.options.no_password:
        core.finish(call, manage(core, request))
        return None
    return _with_hash(core, call, request)


def change_password(core: Core, call: UnaryCall, request: rpc_pb2.AuthUserChangePasswordRequest) -> Waiting | None:
    if not request.password:  # a client that hashes itself
        core.finish(call, manage(core, request))
        return None
    return _with_hash(core, call, request)


def _with_hash(core: Core, call: UnaryCall, request: Any) -> Waiting:
    """Carries out the request when the hash of its password has taken the password's place."""
    claimed = core.claimed(call) if core.auth.enabled else None

    def go_on(hashed: bytes) -> None:
        request.hashedPassword = base64.b64encode(hashed).decode()
        core.answer(call, lambda: _again(core, claimed, request))

    password, request.password = request.password, ""
    return core.passwords.hash(password, go_on, _failed(core, call))


def _again(core: Core, claimed: Any, request: Message) -> bytes:
    core.permit_claimed(claimed, request)
    return manage(core, request)


def authenticate(core: Core, call: UnaryCall, request: rpc_pb2.AuthenticateRequest) -> Waiting:
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
            core.finish(call, errors.AUTH_FAILED.error())
        elif auth.revision != checked_revision:
            call.waiting = authenticate(core, call, request)
        else:
            core.answer(call, lambda: _logged_in(core, request.name))

    hashed = user.password if user is not None else None
    return core.passwords.check(request.password, hashed, go_on, _failed(core, call))


def _failed(core: Core, call: UnaryCall) -> Failed:
    return lambda error: core.finish(call, told(error, call.method.path))


def _logged_in(core: Core, name: str) -> bytes:
    token = core.tokens.issue(name, core.auth.revision)
    return core.machine.header_field() + rpc_pb2.AuthenticateResponse(token=token).SerializeToString()
