# SPDX-License-Identifier: Apache-2.0
"""Simple tokens: a user who has logged in shows one with each call. The other kind is in jwt_tokens.py.

Laws
- A simple token stands for its user as long as it is used: it ends `ttl_s` seconds after its last use.
- It is in memory only, so a restart ends it. Deleting its user, changing its user's password and switching auth off end
  it at once. No other change of the auth data does.

Theory of operation. Each use moves a token to the end of the dict, so the tokens that end first stand in front. Those
that have ended are dropped from there whenever a new one is issued. Then the table holds only tokens that were used
within one TTL.
"""

import secrets
import string
from collections.abc import Callable
from typing import Protocol

from lessor.base.clock import Clock
from lessor.state.permissions import Caller

TOKEN_LETTERS = 16


class Tokens(Protocol):
    """Issues tokens and knows them again."""

    def issue(self, name: str, revision: int) -> str:
        """A new token for a user whose password was right. Raises EtcdError when this server issues none."""
        ...

    def caller(self, token: str, revision: int) -> Caller | None:
        """The user of a token; None for a token that is not valid, or no longer. `revision`: of the auth data now."""
        ...

    def forget_user(self, name: str) -> None:
        """The user was deleted or has a new password."""
        ...

    def forget_all(self) -> None:
        """Auth was switched off."""
        ...


class SimpleTokens:
    """Tokens that mean something to this server only: sixteen random letters, a dot, and a number."""

    def __init__(self, clock: Clock, ttl_s: float, number: Callable[[], int]) -> None:
        """`number`: makes the number behind the dot. In etcd it is the raft index at the login."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._number = number
        self._users: dict[str, tuple[str, float]] = {}  # token -> (user, end), in the order of the ends

    def issue(self, name: str, revision: int) -> str:
        now_s = self._clock.now_s()
        while self._users and (oldest := next(iter(self._users.items())))[1][1] <= now_s:
            del self._users[oldest[0]]
        letters = "".join(secrets.choice(string.ascii_letters) for _ in range(TOKEN_LETTERS))
        token = f"{letters}.{self._number()}"
        self._users[token] = name, now_s + self._ttl_s
        return token

    def caller(self, token: str, revision: int) -> Caller | None:
        known = self._users.pop(token, None)
        if known is None:
            return None
        now_s = self._clock.now_s()
        name, end_s = known
        if now_s >= end_s:
            return None
        self._users[token] = name, now_s + self._ttl_s
        return Caller(name, revision)

    def forget_user(self, name: str) -> None:
        self._users = {token: known for token, known in self._users.items() if known[0] != name}

    def forget_all(self) -> None:
        self._users.clear()
