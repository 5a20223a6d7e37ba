# SPDX-License-Identifier: Apache-2.0
"""Two processes of a client that is none of ours, etcdctl with the Go library's locks, contend; the holder is killed.

The holder talks to the server through a relay, which notes when it sent its last renewal and when that was answered:
HTTP/2 DATA frames, which a holder sends and gets for renewals alone. The lease ends one TTL after the server took that
renewal, at an instant between the two. The lock must not come before one TTL after the sending.

LESSOR_TEST_KILLS is the number of kills (1 by itself): with it the figures are printed, and must stay below LATE_S_MAX.
"""

import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.conformance.etcdctl import etcdctl_binary
from tests.conformance.lessor_server import LessorServer

TTL_S = 2
LATE_S_MAX = 0.1
DATA = 0  # the type of HTTP/2's DATA frames
HEAD_BYTES = 9  # of a frame: length, type, flags, stream


class Relay:
    """Passes one connection on to the server and notes when DATA frames went by."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent_s = self.answered_s = 0.0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed: the test is over
            server = socket.create_connection(self._target)
            for source, target, name in ((client, server, "sent_s"), (server, client, "answered_s")):
                threading.Thread(target=self._pass_on, args=(source, target, name), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, name: str) -> None:
        preface = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") if name == "sent_s" else 0
        rest = b""
        try:
            while piece := source.recv(65536):
                now_s = time.monotonic()
                rest += piece
                if preface and len(rest) >= preface:
                    rest, preface = rest[preface:], 0
                while not preface and len(rest) >= HEAD_BYTES:
                    end = HEAD_BYTES + int.from_bytes(rest[:3], "big")
                    if len(rest) < end:
                        break
                    if rest[3] == DATA:
                        setattr(self, name, now_s)
                    rest = rest[end:]
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of the two is gone
        finally:
            source.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait in `accept` for ever
        self._listener.close()


def locked(address: str, name: str) -> "subprocess.Popen[bytes]":
    command = [str(etcdctl_binary()), f"--endpoints={address}", "lock", name, f"--ttl={TTL_S}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)


def handover(address: str, name: str, wait_s: float) -> tuple[float, float]:
    """One holder killed, `wait_s` after a renewal. How long after a TTL since its last renewal (sent, answered) the
    other one says that the lock is its own.
    """
    relay = Relay(address)
    with locked(relay.address, name) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith(name.encode())
        with locked(address, name) as waiter:
            assert waiter.stdout is not None
            before_s = relay.answered_s
            while relay.answered_s == before_s or relay.answered_s < relay.sent_s:  # the next renewal, whole
                time.sleep(0.005)
            time.sleep(wait_s)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            assert waiter.stdout.readline().startswith(name.encode())
            got_s = time.monotonic()
            waiter.terminate()
    relay.close()
    return got_s - TTL_S - relay.sent_s, got_s - TTL_S - relay.answered_s


@pytest.mark.slow
@pytest.mark.etcd
def test_the_other_etcdctl_gets_the_lock_when_the_lease_ends() -> None:
    kills = int(os.environ.get("LESSOR_TEST_KILLS", "1"))
    with LessorServer() as server:
        results = [handover(server.address, f"lock{number}", number % 5 * 0.1) for number in range(kills)]
    assert min(after_sent_s for after_sent_s, _ in results) >= 0
    if kills > 1:
        late_s = sorted(after_answered_s for _, after_answered_s in results)
        print(f"{kills} kills: late by median {late_s[kills // 2] * 1e3:.1f} ms, most {late_s[-1] * 1e3:.1f} ms")
        assert late_s[-1] <= LATE_S_MAX
