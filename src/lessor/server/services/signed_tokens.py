# SPDX-License-Identifier: Apache-2.0
"""Simple tokens of servers that share a log: each of them can judge a token that another one gave.

Laws
- A token stands for its user as long as it is used, at any of the servers: see loop/token_uses.py for its end. It
  survives the server that gave it.
- Nobody makes or changes a token without the key, which stands in the log and in its copies. So does the hash of the
  user's password, which is signed with it: a new password, or another user of that name, ends the token.
- Switching auth off draws another key, which ends all tokens.
- A server that has not applied the record with a new key or user yet knows fewer tokens than the leader, never more
  than the leader knew at that record.

    <base64 of: when it was given, eight random bytes, the user's name> . <64 hex digits: HMAC-SHA256>

Whoever reads the log, or a snapshot, can make tokens; he can read the hashes of the passwords too.
"""

import base64
import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Final

from lessor.server.loop.token_uses import TokenUses
from lessor.state.machine import StateMachine
from lessor.state.permissions import Caller

KEY_BYTES: Final = 32
_FRONT: Final = struct.Struct(">Q8s")  # when it was given, in ms of the data clock; random
_SIGNED: Final = struct.Struct(">QH")  # cluster id, size of the password's hash; that and the token's front behind it
_SEAL_DIGITS: Final = 64
_MARK_BYTES: Final = 16


class SignedTokens:
    """Implements tokens.Tokens. Holds no tokens."""

    def __init__(self, machine: StateMachine, data_clock: Callable[[], float], uses: TokenUses) -> None:
        self._auth = machine.auth
        self._cluster_id = machine.identity.cluster_id
        self._data_clock = data_clock
        self._uses = uses

    def issue(self, name: str, revision: int) -> str:
        if not self._auth.token_key:
            self._auth.change_token_key(secrets.token_bytes(KEY_BYTES))
        given_ms = int(max(self._data_clock(), 0.0) * 1000)
        front = base64.urlsafe_b64encode(_FRONT.pack(given_ms, secrets.token_bytes(8)) + name.encode()).decode()
        token = f"{front}.{self._seal(front, name)}"
        self._uses.used(_mark(token))
        return token

    def caller(self, token: str, revision: int) -> Caller | None:
        found = self._read(token)
        if found is None:
            return None
        name, given_s = found
        mark = _mark(token)
        is_live = self._uses.is_live(mark)
        if is_live is None:  # not used here, and nobody has told of it: it was given just now, or long ago
            is_live = self._data_clock() < given_s + self._uses.ttl_s
        if not is_live:
            return None
        self._uses.used(mark)
        return Caller(name, revision)

    def forget_user(self, name: str) -> None:
        """Its tokens went with the hash of its password."""

    def forget_all(self) -> None:
        if self._auth.token_key:
            self._auth.change_token_key(secrets.token_bytes(KEY_BYTES))

    def _read(self, token: str) -> tuple[str, float] | None:
        """The user of a token and when it was given; None unless it is exactly a token that was issued."""
        front, _, seal = token.rpartition(".")
        if len(seal) != _SEAL_DIGITS or not token.isascii() or not self._auth.token_key:
            return None
        try:
            content = base64.b64decode(front, altchars=b"-_", validate=True)
            given_ms, _ = _FRONT.unpack_from(content)
            name = content[_FRONT.size :].decode()
        except (ValueError, struct.error):
            return None
        if not hmac.compare_digest(seal, self._seal(front, name)) or name not in self._auth.users:
            return None
        return name, given_ms / 1000

    def _seal(self, front: str, name: str) -> str:
        user = self._auth.users.get(name)
        password = user.password if user is not None else b""
        signed = _SIGNED.pack(self._cluster_id, len(password)) + password + front.encode()
        return hmac.digest(self._auth.token_key, signed, "sha256").hex()


def _mark(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=_MARK_BYTES).digest()
