# SPDX-License-Identifier: Apache-2.0
"""The fair queue: who waits for how many others, who makes room, and that the three lines of a job stay one."""

import random

from lessor.server.loop.fair_queue import FairQueue, Peer
from lessor.server.loop.peer_address import address_of, shortened


def filled(peers: list[Peer]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for job, peer in enumerate(peers):
        queue.add(job, peer)
    return queue


def turns_until(queue: FairQueue[int], job: int) -> int:
    turns = 1
    while queue.take() != job:
        turns += 1
    return turns


def test_one_address_with_many_jobs_costs_another_two_turns() -> None:
    crowd = [Peer(f"c{number % 4}", "a", f"user {number}") for number in range(1_000)]
    assert turns_until(filled([*crowd, Peer("d", "b", "ann")]), 1_000) <= 4


def test_one_connection_with_many_jobs_costs_another_at_its_address_two_turns() -> None:
    crowd = [Peer("c", "a", f"user {number}") for number in range(1_000)]
    assert turns_until(filled([*crowd, Peer("d", "a", "ann")]), 1_000) <= 4


def test_many_addresses_that_guess_one_users_password_cost_another_user_two_turns() -> None:
    crowd = [Peer(f"c{number}", f"a{number}", "root") for number in range(1_000)]
    assert turns_until(filled([*crowd, Peer("d", "b", "ann")]), 1_000) <= 4


def test_each_connection_is_served_in_its_own_order() -> None:
    queue = filled([Peer("c", "a", "u"), Peer("d", "a", "u"), Peer("c", "a", "u"), Peer("d", "a", "u")])
    taken = [queue.take() for _ in range(len(queue))]
    assert taken.index(0) < taken.index(2)
    assert taken.index(1) < taken.index(3)


def victim(crowd: list[Peer], newcomer: Peer) -> Peer:
    return [*crowd, newcomer][filled([*crowd, newcomer]).most_crowding(len(crowd))]


def test_the_peer_that_has_most_makes_room() -> None:
    few = Peer("d", "b", "ann")
    one_address = [Peer(f"c{number % 4}", "a", f"user {number}") for number in range(100)]
    assert victim([few, *one_address], few._replace(connection="e")) == one_address[-1]
    assert victim([few, *one_address], few._replace(connection="e", address="a")).connection in ["c0", "c1", "c2", "c3"]
    one_name = [Peer(f"c{number}", f"a{number}", "root") for number in range(100)]
    assert victim([few, *one_name], few._replace(connection="e")) == one_name[-1]
    behind_one_address = [Peer(f"c{number}", "a", f"user {number}") for number in range(100)]
    assert victim([few, *behind_one_address], few._replace(connection="e")) == behind_one_address[-1]
    # Whose password is guessed can still log in: the guesser has more in the queue than this one name.
    guesses = [Peer(f"c{number % 4}", "a", "ann") for number in range(100)]
    assert victim(guesses, few) == guesses[-1]
    # The newcomer itself, when it has most, or as much as any other.
    assert victim([few, *one_address], one_address[0]) == one_address[0]
    alike = [Peer(f"c{number}", f"a{number}", f"user {number}") for number in range(100)]
    assert victim(alike, few) == few


def test_jobs_that_come_and_go_in_any_order_leave_nothing() -> None:
    chance = random.Random(12)
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, Peer] = {}
    for job in range(5_000):
        connection = chance.randrange(12)
        peer = Peer(connection, f"a{connection % 4}", f"user {chance.randrange(5)}")
        queue.add(job, peer)
        waiting[job] = peer
        assert queue.most_crowding(job) in waiting
        while len(waiting) > 30 or (waiting and chance.random() < 0.4):
            if chance.random() < 0.5:
                gone = chance.choice(list(waiting))
                queue.discard(gone)
                queue.discard(gone)
            else:
                gone = queue.take()
                before = [other for other in waiting if waiting[other] == waiting[gone] and other < gone]
                assert not before
            del waiting[gone]
        assert len(queue) == len(waiting)
    for job in waiting:
        queue.discard(job)
    assert not any((queue._peers, queue._addresses, queue._connections, queue._names, queue._of_address))


def test_an_address_is_as_much_as_its_owner_cannot_choose() -> None:
    assert shortened("192.0.2.7") == shortened("::ffff:192.0.2.7") == "192.0.2.7"
    assert shortened("2001:db8:1:2:3:4:5:6") == shortened("2001:db8:1:2::9") == "2001:db8:1:2::"
    assert shortened("2001:db8:1:3::9") != shortened("2001:db8:1:2::9")
    assert shortened("fe80::1%eth0") == "fe80::"
    assert address_of(None) == ""
