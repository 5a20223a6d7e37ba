# SPDX-License-Identifier: Apache-2.0
"""Leases of a server whose clock is jumped, against arithmetic in whole microseconds.

LESSOR_JUMPS sets the number of jumps (default 400), LESSOR_JUMPS_SEED repeats a run. After each jump all leases of the
story are looked at.
"""

import os
import random
import time

from lessor.client import Client
from lessor.state.replay import RECONNECT_GRACE_S
from lessor.testing.server import InProcessServer

JUMPS = int(os.environ.get("LESSOR_JUMPS", "400"))
SEED = int(os.environ.get("LESSOR_JUMPS_SEED", str(time.time_ns() % 1_000_000)))
JUMPS_PER_STORY = 100
LEASES_MAX = 4
FEW_TIMERS = "--watch-progress-notify-interval=10000h", "--grpc-keepalive-interval=1000000h"
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


class Story:
    """One server, and what its leases should be. All instants are whole microseconds."""

    def __init__(self, seed: int, server: InProcessServer, client: Client) -> None:
        self.random = random.Random(seed)
        self.server = server
        self.client = client
        self.now_us = 0
        self.leases: dict[int, tuple[int, int]] = {}  # id -> TTL in seconds, deadline

    def step(self) -> None:
        """Grants, renews or restarts, then jumps and looks."""
        chance = self.random.random()
        if len(self.leases) < LEASES_MAX:
            ttl_s = self.random.choice([1, 2, 10, 60, 3600, 400 * 86_400, self.random.randrange(1, 100_000_000)])
            lease_id = self.client.grant(ttl_s).ID
            self.leases[lease_id] = ttl_s, self.now_us + ttl_s * SECOND_US
        elif chance < 0.2:
            lease_id = self.random.choice(list(self.leases))
            ttl_s, _ = self.leases[lease_id]
            renewed_s = self.client.keep_alive_once(lease_id).TTL
            assert renewed_s == ttl_s
            self.leases[lease_id] = ttl_s, self.now_us + ttl_s * SECOND_US
        self.look()
        ahead_us = self.ahead_us()
        self.server.clock.jump(ahead_us / 1e6)
        self.now_us += ahead_us
        self.look()

    def ahead_us(self) -> int:
        """How far to jump: mostly to where it is decided, a deadline or a whole second of one, and just short of it."""
        left_us = self.random.choice([deadline_us - self.now_us for _, deadline_us in self.leases.values()])
        span_us = self.random.choice([1, 1000, SECOND_US, 60 * SECOND_US, DAY_US])
        whole_us = self.random.randrange(left_us // SECOND_US + 1) * SECOND_US
        return max(
            self.random.choice(
                [
                    left_us,
                    left_us - 1,
                    left_us - 500,
                    left_us % SECOND_US,
                    left_us - whole_us,
                    left_us - whole_us - 1,
                    100_000,
                    self.random.randrange(50 * span_us),
                ]
            ),
            0,
        )

    def restarted(self) -> None:
        """A restart takes no time; each lease has RECONNECT_GRACE_S left at least."""
        least_us = self.now_us + int(RECONNECT_GRACE_S) * SECOND_US
        self.leases = {each: (ttl_s, max(end_us, least_us)) for each, (ttl_s, end_us) in self.leases.items()}

    def look(self) -> None:
        for lease_id, (ttl_s, deadline_us) in list(self.leases.items()):
            reply = self.client.time_to_live(lease_id)
            left_us = deadline_us - self.now_us
            if left_us > 0:
                assert (reply.grantedTTL, reply.TTL) == (ttl_s, left_us // SECOND_US), (left_us, SEED)
            else:
                assert reply.TTL == -1, (left_us, SEED)
                del self.leases[lease_id]


def test_remaining_times_and_ends_are_those_of_whole_microseconds() -> None:
    print(f"LESSOR_JUMPS_SEED={SEED}")
    done = 0
    while done < JUMPS:
        with InProcessServer(*FEW_TIMERS) as server, server.client() as client:
            story = Story(SEED + done, server, client)
            for _ in range(min(JUMPS_PER_STORY, JUMPS - done)):
                story.step()
                done += 1
            server.restart()
            story.restarted()
            story.look()


def test_half_a_millisecond_before_its_end_a_lease_lives() -> None:
    with InProcessServer() as server, server.client() as client:
        lease_id = client.grant(10).ID
        server.clock.jump(9.9995)
        for _ in range(100):
            server.clock.jump(0)
        assert client.time_to_live(lease_id).TTL == 0
        server.clock.jump(0.0005)
        assert client.time_to_live(lease_id).TTL == -1


def test_fifty_tenths_of_a_second_are_five_seconds() -> None:
    with InProcessServer() as server, server.client() as client:
        lease_id = client.grant(10).ID
        short_id = client.grant(5).ID
        for tenths in range(1, 51):
            assert client.time_to_live(short_id).TTL >= 0
            server.clock.jump(0.1)
            left_s = client.time_to_live(lease_id).TTL
            assert left_s == (100 - tenths) // 10
        assert client.time_to_live(short_id).TTL == -1


def test_a_year_is_counted_to_the_second() -> None:
    with InProcessServer() as server, server.client() as client:
        server.clock.jump(0.3)
        lease_id = client.grant(400 * 86_400).ID
        server.clock.jump(365 * 86_400)
        assert client.time_to_live(lease_id).TTL == 35 * 86_400
        server.clock.jump(35 * 86_400 - 1e-6)
        assert client.time_to_live(lease_id).TTL == 0
        server.clock.jump(1e-6)
        assert client.time_to_live(lease_id).TTL == -1
