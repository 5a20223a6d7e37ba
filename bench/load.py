# SPDX-License-Identifier: Apache-2.0
"""The load: a gRPC client that spends as little as possible on each call, so that the server is what is measured.

Laws
- It runs in a process of its own; what a call needs is made before the counting begins.
- Every reply is checked: its status and what it says (IDs distinct for grants, the lease asked for and in order for
  keepalives, a revision of its own for each write, the key and value asked for), and that none is missing at the end.
  A wrong reply ends the run with an error, never with a figure.
- It says how busy it was itself. Above nine tenths of a core the figure measures the client, and says so.

How it works: load_loop.py (the loop), h2_client.py (the connection), h2_calls.py (the calls), h1_client.py (JSON).
Calls that may be repeated run for a time; writes that must be new each time are made once each, from a list of --count.

With --cacert it speaks TLS; each connection then has one more copy of its bytes to make.

    python -m bench.load grant --port 2379 --connections 10 --in-flight 20 --seconds 5
    python -m bench.load keepalive --port 2379 --streams 10 --in-flight 64 --seconds 5

prints one JSON object (see `Report`).
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from google.protobuf.message import Message

from bench import population
from bench.h1_client import json_grants, json_ranges
from bench.h2_calls import Check, Keepalives, UnaryCalls, call_all
from bench.h2_client import speak_tls
from bench.load_loop import Report, WrongReplyError, run_for
from lessor.api.proto import rpc_pb2

LIST_CALLS = 4_096  # requests in the list that a connection repeats
READ_KEYS = 10_000
REST_S = 0.5  # for what a server does once it is left alone


def grants(options: argparse.Namespace, report: Report) -> None:
    ids: list[int] = []

    def check(_: int, data: bytes) -> None:
        reply = rpc_pb2.LeaseGrantResponse.FromString(data)
        granted_s = reply.TTL
        if granted_s != options.ttl_s or reply.ID <= 0 or reply.error:
            raise WrongReplyError(f"asked for a TTL of {options.ttl_s} s and got {reply}")
        ids.append(reply.ID)

    requests = [rpc_pb2.LeaseGrantRequest(TTL=options.ttl_s)] * LIST_CALLS
    connections = repeated(options, population.GRANT_PATH, requests, check)
    run_for(connections, report, options.warmup, options.seconds)
    if len(set(ids)) != len(ids) or len(ids) != sum(connection.answered for connection in connections):
        raise WrongReplyError("an ID was given twice")


def repeated(options: argparse.Namespace, path: str, requests: Sequence[Message], check: Check) -> list[UnaryCalls]:
    address = options.host, options.port
    return [UnaryCalls(address, options.in_flight, path, requests, check) for _ in range(options.connections)]


def keepalives(options: argparse.Namespace, report: Report) -> None:
    address, flight = (options.host, options.port), options.in_flight
    ids = population.new_ids(options.connections * flight)  # one lease for each call in flight
    population.grant(address, ids, options.ttl_s)
    connections = [
        Keepalives(address, flight, options.ttl_s, ids[number * flight : (number + 1) * flight])
        for number in range(options.connections)
    ]
    run_for(connections, report, options.warmup, options.seconds)


def reads(
    options: argparse.Namespace, report: Report, path: str, request: Callable[[int], Message], about: Check
) -> None:
    """Reads of one key or lease at a time, at random of READ_KEYS."""
    ids = population.new_ids(READ_KEYS)
    population.populate((options.host, options.port), ids)
    picked = [random.choice(ids) for _ in range(LIST_CALLS)]
    known: dict[bytes, int] = {}  # a reply that was found right -> the lease that it is about

    def check(number: int, data: bytes) -> None:
        if known.get(data) != picked[number]:
            about(picked[number], data)
            if len(known) > 16 * READ_KEYS:  # a remaining TTL moves
                known.clear()
            known[data] = picked[number]

    requests = [request(lease_id) for lease_id in picked]
    run_for(repeated(options, path, requests, check), report, options.warmup, options.seconds)


def ranges(options: argparse.Namespace, report: Report) -> None:
    reads(
        options,
        report,
        population.RANGE_PATH,
        lambda lease_id: rpc_pb2.RangeRequest(key=population.key_of(lease_id)),
        population.check_range,
    )


def times_to_live(options: argparse.Namespace, report: Report) -> None:
    def about(lease_id: int, data: bytes) -> None:
        reply = rpc_pb2.LeaseTimeToLiveResponse.FromString(data)
        left_s, granted_s = reply.TTL, reply.grantedTTL
        if (reply.ID, granted_s) != (lease_id, population.TTL_S) or not 0 < left_s <= granted_s:
            raise WrongReplyError(f"asked for the time to live of {lease_id} and got {reply}")

    reads(
        options,
        report,
        population.TIME_TO_LIVE_PATH,
        lambda lease_id: rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id),
        about,
    )


def puts(options: argparse.Namespace, report: Report) -> None:
    """--count new keys, each with a lease of its own."""
    address = options.host, options.port
    ids = population.new_ids(options.count)
    population.grant(address, ids)
    pairs = [(population.key_of(lease_id), lease_id) for lease_id in ids]
    population.put_each(address, pairs, report, connections=options.connections, in_flight=options.in_flight)


def puts_on_one_lease(options: argparse.Namespace, report: Report) -> None:
    """--count new keys with one lease, after a quarter as many without, so that the server is warm.

    In between it has time for what it has put off: the last thousand is to show what the lease costs.
    """
    address = options.host, options.port
    (lease_id,) = population.new_ids(1)
    population.grant(address, [lease_id])
    how = {"connections": options.connections, "in_flight": options.in_flight}
    warm = [(b"warm/%08d" % number, 0) for number in range(options.count // 4)]
    population.put_each(address, warm, Report("warm", 0, 0), **how)
    time.sleep(REST_S)
    pairs = [(b"shared/%08d" % number, lease_id) for number in range(options.count)]
    population.put_each(address, pairs, report, **how, part=1_000)


def creates(options: argparse.Namespace, report: Report) -> None:
    """--count transactions: a key that is not there is put with a lease of its own."""
    address = options.host, options.port
    ids = population.new_ids(options.count)
    population.grant(address, ids)
    revisions = set()

    def request(lease_id: int) -> rpc_pb2.TxnRequest:
        key = population.key_of(lease_id)
        absent = rpc_pb2.Compare(
            key=key, target=rpc_pb2.Compare.CompareTarget.CREATE, result=rpc_pb2.Compare.CompareResult.EQUAL
        )
        absent.create_revision = 0
        put = rpc_pb2.PutRequest(key=key, value=population.VALUE, lease=lease_id)
        return rpc_pb2.TxnRequest(
            compare=[absent],
            success=[rpc_pb2.RequestOp(request_put=put)],
            failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
        )

    def check(_: int, data: bytes) -> None:
        reply = rpc_pb2.TxnResponse.FromString(data)
        if not reply.succeeded or len(reply.responses) != 1:
            raise WrongReplyError(f"a key that was not there was not put: {reply}")
        revisions.add(reply.header.revision)

    how = {"connections": options.connections, "in_flight": options.in_flight}
    call_all(address, population.TXN_PATH, [request(lease_id) for lease_id in ids], check, report=report, **how)
    if len(revisions) != len(ids):
        raise WrongReplyError(f"{len(ids)} transactions had {len(revisions)} revisions")


KINDS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "grant": grants,
    "keepalive": keepalives,
    "range": ranges,
    "time_to_live": times_to_live,
    "put": puts,
    "put_one_lease": puts_on_one_lease,
    "create": creates,
    "json_grant": json_grants,
    "json_range": json_ranges,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Loads an etcd API server and prints what came back, as JSON.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2379)
    parser.add_argument("--connections", "--streams", type=int, default=10, help="each keepalive stream has its own")
    parser.add_argument("--in-flight", type=int, default=20, help="calls that wait for an answer, per connection")
    parser.add_argument("--count", type=int, default=20_000, help="writes that are made, where each is made once")
    parser.add_argument("--ttl-s", type=int, default=3600)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of counting")
    parser.add_argument("--cacert", default="", help="speak TLS, to a server with a certificate of this authority")
    options = parser.parse_args()
    if options.cacert:
        speak_tls(options.cacert)
    gc.disable()
    try:
        report = Report(options.kind, options.connections, options.in_flight)
        KINDS[options.kind](options, report)
    except (WrongReplyError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
