# SPDX-License-Identifier: Apache-2.0
"""Bounds the bytes of keys that calls keep for as long as they last: of watches, of waits for locks, of observers.

Laws
- One connection keeps at most KEPT_KEYS_CONNECTION_BYTES_MAX. Beyond it the newcomer is refused.
- All together keep at most KEPT_KEYS_BYTES_MAX. Beyond it the call that keeps most, of the address whose connections
  keep most together, loses its largest key, again and again until the rest fits: the peer that fills the memory pays.
- What is given back, by a cancel or the end of a call, counts no more.

Keys that are data are not counted here; the quota bounds them.
"""

from typing import Protocol

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.held import Held
from lessor.server.observe.shortages import KEPT_KEYS, Shortages


class Keeper(Protocol):
    """A call that keeps keys."""

    @property
    def held(self) -> Held:
        """Stands for its connection, see call.py. The same for as long as it keeps keys."""
        ...

    def lose_key(self, error: EtcdError) -> None:
        """Ends the watch or the wait with the largest key, and takes its bytes off the count."""
        ...


class KeptKeys:
    """The count. One per server; loop thread only."""

    __slots__ = ("_by_connection", "_by_keeper", "_shortages", "total_bytes")

    def __init__(self, shortages: Shortages) -> None:
        self._shortages = shortages
        self._by_connection: dict[Held, int] = {}
        self._by_keeper: dict[Keeper, int] = {}
        self.total_bytes = 0

    def add(self, keeper: Keeper, size_bytes: int) -> None:
        """A call keeps keys of so many bytes more. Raises EtcdError if it may not; then nothing is counted.

        Cost: O(1); beyond the common bound O(calls that keep keys) for each key that is lost.
        """
        if self._by_connection.get(keeper.held, 0) + size_bytes > limits.KEPT_KEYS_CONNECTION_BYTES_MAX:
            raise _too_much("this connection", limits.KEPT_KEYS_CONNECTION_BYTES_MAX)
        self._change(keeper, size_bytes)
        while self.total_bytes > limits.KEPT_KEYS_BYTES_MAX:
            self._shortages.reached(KEPT_KEYS)
            error = _too_much("all connections", limits.KEPT_KEYS_BYTES_MAX)
            fullest = self._fullest()
            if fullest is keeper:
                self._change(keeper, -size_bytes)
                raise error
            fullest.lose_key(error)

    def remove(self, keeper: Keeper, size_bytes: int) -> None:
        """The call keeps so many bytes less."""
        self._change(keeper, -size_bytes)

    def _change(self, keeper: Keeper, by_bytes: int) -> None:
        held = keeper.held
        connection_bytes = self._by_connection.get(held, 0) + by_bytes
        keeper_bytes = self._by_keeper.get(keeper, 0) + by_bytes
        if connection_bytes:
            self._by_connection[held] = connection_bytes
        else:
            self._by_connection.pop(held, None)
        if keeper_bytes:
            self._by_keeper[keeper] = keeper_bytes
        else:
            self._by_keeper.pop(keeper, None)
        self.total_bytes += by_bytes

    def _fullest(self) -> Keeper:
        of_address: dict[str, int] = {}
        for held, kept_bytes in self._by_connection.items():
            of_address[held.address] = of_address.get(held.address, 0) + kept_bytes
        address = max(of_address, key=of_address.__getitem__)
        keepers = [keeper for keeper in self._by_keeper if keeper.held.address == address]
        return max(keepers, key=self._by_keeper.__getitem__)


def _too_much(whose: str, bytes_max: int) -> EtcdError:
    text = f"etcdserver: too many requests: the keys that calls of {whose} keep are larger than max {bytes_max}"
    return EtcdError(Code.RESOURCE_EXHAUSTED, text)
