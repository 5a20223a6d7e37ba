# SPDX-License-Identifier: Apache-2.0
"""A queue for work that takes long, in which each connection, each address and each name has a fair share.

Laws
- Half of the jobs are taken by address: each address in turn, within it each connection in turn, within that the oldest
  job. The other half are taken by name: each name in turn, within it the oldest job.
- So a job waits for at most two jobs of each other address, or for two of each other name, whichever are fewer, however
  many jobs these have; and for the jobs before it of its own address and of its own name.
- When the queue is full, a job of the peer that crowds it most makes room, not the last one to come: `most_crowding`.

Theory of operation. A job stands in three places: in the ring of addresses, in the line of its connection, and in the
line of its name. A ring is a dict whose first key is moved to the end when it has had its turn. A lone address that
opens many connections shares one turn among them; many addresses that all name one user share that name's turn.

Does not do: the bound itself, threads, the answers. Loop thread only.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

J = TypeVar("J", bound=Hashable)


class Peer(NamedTuple):
    """Who a job is for."""

    connection: Hashable
    address: str
    name: str  # the user that the peer names; "" if it names none


class FairQueue(Generic[J]):
    """The jobs that wait."""

    def __init__(self) -> None:
        self._peers: dict[J, Peer] = {}  # in the order in which the jobs came
        self._addresses: OrderedDict[str, OrderedDict[Hashable, None]] = OrderedDict()  # the connections of each
        self._connections: dict[Hashable, OrderedDict[J, None]] = {}
        self._names: OrderedDict[str, OrderedDict[J, None]] = OrderedDict()
        self._of_address: dict[str, int] = {}  # the number of its jobs
        self._by_name_next = False

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, job: J, peer: Peer) -> None:
        """Puts a job behind the others of its connection and of its name, unless it waits already. Cost: O(1)."""
        if job in self._peers:
            return
        connection, address, name = peer
        self._peers[job] = peer
        self._addresses.setdefault(address, OrderedDict()).setdefault(connection)
        self._connections.setdefault(connection, OrderedDict())[job] = None
        self._names.setdefault(name, OrderedDict())[job] = None
        self._of_address[address] = self._of_address.get(address, 0) + 1

    def take(self) -> J:
        """Takes out the job whose turn it is. There must be one. Cost: O(1)."""
        if self._by_name_next:
            name = next(iter(self._names))
            self._names.move_to_end(name)
            job = next(iter(self._names[name]))
        else:
            address = next(iter(self._addresses))
            self._addresses.move_to_end(address)
            connections = self._addresses[address]
            connection = next(iter(connections))
            connections.move_to_end(connection)
            job = next(iter(self._connections[connection]))
        self._by_name_next = not self._by_name_next
        self.discard(job)
        return job

    def discard(self, job: J) -> None:
        """Takes a job out, wherever it stands. Does nothing if it does not wait. Cost: O(1)."""
        peer = self._peers.pop(job, None)
        if peer is None:
            return
        connection, address, name = peer
        named = self._names[name]
        del named[job]
        if not named:
            del self._names[name]
        of_connection = self._connections[connection]
        del of_connection[job]
        if not of_connection:
            del self._connections[connection]
            del self._addresses[address][connection]
        if self._of_address[address] > 1:
            self._of_address[address] -= 1
        else:
            del self._of_address[address], self._addresses[address]

    def most_crowding(self, newest: J) -> J:
        """The job to give up when there is no room for `newest`, which is in the queue already.

        It is the newest of the jobs whose connection, address and name have the most jobs in all. Cost: O(1) if the
        connection of `newest` has more than an equal share of the queue: then it is `newest` itself. Otherwise O(n).
        """
        own = len(self._connections[self._peers[newest].connection])
        if own > 1 and own * len(self._connections) > len(self._peers):
            return newest
        most, found = 0, newest
        for job, (connection, address, name) in self._peers.items():
            crowd = len(self._connections[connection]) + self._of_address[address] + len(self._names[name])
            if crowd >= most:
                most, found = crowd, job
        return found
