# SPDX-License-Identifier: Apache-2.0
"""The copy's thread leaves the interpreter to others between bursts, however many rows there are."""

from collections.abc import Iterator

from lessor.server.services import snapshots

ROW_S = 0.0001


class Clock:
    """Each row takes ROW_S; time sleeps by itself."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.awake_s: list[float] = [0.0]  # in each burst

    def read(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        assert seconds == snapshots.PAUSE_S
        self.awake_s.append(0.0)
        self.now_s += seconds

    def rows(self, count: int) -> Iterator[int]:
        for row in range(count):
            self.now_s += ROW_S
            self.awake_s[-1] += ROW_S
            yield row


def test_rows_come_in_bursts() -> None:
    clock = Clock()
    assert list(snapshots._paced(clock.rows(10_000), clock.read, clock.pause)) == list(range(10_000))
    longest_s = snapshots.BURST_S + snapshots._LOOK_ROWS * ROW_S
    assert max(clock.awake_s) <= longest_s + ROW_S / 2
    assert len(clock.awake_s) >= 10_000 * ROW_S / longest_s
