# SPDX-License-Identifier: Apache-2.0
"""For how long a server that follows has been behind its leader."""


class Lag:
    """Pure: the batches that the leader has named, and when. Batches are numbered over all epochs."""

    __slots__ = ("_named", "_named_s", "_newest", "_newest_s")

    def __init__(self) -> None:
        self._named = 0  # the oldest named batch that is not here, as far as one is remembered
        self._named_s = 0.0
        self._newest = 0
        self._newest_s = 0.0

    def named(self, batch: int, now_s: float) -> None:
        """The leader has said that `batch` is durable."""
        if batch > self._newest:
            self._newest, self._newest_s = batch, now_s

    def seconds(self, durable: int, now_s: float) -> float:
        """0 if all is here that the leader has named, else since when something is not. `durable`: what is here.

        Of the batches named in between one is remembered at a time, so it may be less than the truth, by at most the
        time since the last call.
        """
        if durable >= self._named:
            self._named, self._named_s = self._newest, self._newest_s
        return 0.0 if durable >= self._named else now_s - self._named_s
