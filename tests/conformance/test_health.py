# SPDX-License-Identifier: Apache-2.0
"""/health, /livez and /readyz: what they say with and without alarms - Lessor and a real etcd.

etcd goes through its checks in any order; the lines are compared sorted.
"""

from collections.abc import Iterator

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import RUNNERS, HttpReply, Subject, running

WELL = b'{"health":"true","reason":""}'
READY = ["[+]data_corruption ok", "[+]linearizable_read ok", "[+]non_learner ok", "[+]serializable_read ok"]
CORRUPT = ["[-]data_corruption failed: alarm activated: CORRUPT", *READY[1:]]


@pytest.fixture(scope="module", params=RUNNERS)
def alone(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param) as server:
        yield server


class Alarm:
    """Up inside a `with` block."""

    def __init__(self, subject: Subject, kind: int) -> None:
        self._subject = subject
        member_id = subject.do(rpc.RangeRequest(key=b"a")).header.member_id
        self._request = rpc.AlarmRequest(memberID=member_id, alarm=kind)  # type: ignore[arg-type]

    def __enter__(self) -> None:
        self._request.action = rpc.AlarmRequest.ACTIVATE
        self._subject.do(self._request)

    def __exit__(self, *_: object) -> None:
        self._request.action = rpc.AlarmRequest.DEACTIVATE
        self._subject.do(self._request)


def checked(reply: HttpReply) -> tuple[int, list[str]]:
    """Status and lines of /livez or /readyz."""
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    text = reply.body.decode()
    assert text.endswith("ok\n" if reply.status == 200 else "\n\n")
    lines = text.rstrip("\n").split("\n")
    return reply.status, sorted(lines[:-1]) + lines[-1:] if reply.status == 200 else sorted(lines)


def skip_without_checks(subject: Subject) -> None:
    if subject.request("GET", "/livez").status == 404:
        pytest.skip("this etcd has neither /livez nor /readyz")


def test_a_well_server(alone: Subject) -> None:
    for query in ("", "?serializable=true", "?exclude=NOSPACE", "?exclude=NOSPACE&exclude=CORRUPT", "?exclude=FOO"):
        reply = alone.request("GET", "/health" + query)
        assert (reply.status, reply.body) == (200, WELL)
        assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("name", ["NOSPACE", "CORRUPT"])
def test_an_alarm_makes_unwell_unless_it_is_excluded(alone: Subject, name: str) -> None:
    other = "CORRUPT" if name == "NOSPACE" else "NOSPACE"
    with Alarm(alone, rpc.AlarmType.Value(name)):
        for query in ("", "?serializable=true", "?exclude=", "?exclude=FOO", f"?exclude={other}"):
            reply = alone.request("GET", "/health" + query)
            assert (reply.status, reply.body) == (503, b'{"health":"false","reason":"ALARM %b"}\n' % name.encode())
        for query in (f"?exclude={name}", f"?exclude={other}&exclude={name}"):
            reply = alone.request("GET", "/health" + query)
            assert (reply.status, reply.body) == (200, WELL)


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/livez", ["ok"]),
        ("/livez?verbose", ["[+]serializable_read ok", "ok"]),
        ("/livez/serializable_read", ["ok"]),
        ("/livez?exclude=serializable_read&verbose", ["ok"]),
        ("/readyz", ["ok"]),
        ("/readyz?verbose", [*READY, "ok"]),
        ("/readyz?verbose=false", [*READY, "ok"]),
        ("/readyz?verbose&exclude=nope", [*READY, "ok"]),
        ("/readyz?verbose&exclude=nope&exclude=serializable_read", [*READY[:-1], "ok"]),
        ("/readyz?verbose&exclude=linearizable_read,serializable_read", [*READY, "ok"]),
        ("/readyz/data_corruption?verbose", [READY[0], "ok"]),
        ("/readyz/non_learner?verbose&exclude=non_learner", [READY[2], "ok"]),
    ],
)
def test_checks_of_a_well_server(alone: Subject, path: str, lines: list[str]) -> None:
    skip_without_checks(alone)
    assert checked(alone.request("GET", path)) == (200, lines)


def test_checks_of_a_corrupt_server(alone: Subject) -> None:
    skip_without_checks(alone)
    with Alarm(alone, rpc.CORRUPT):
        assert checked(alone.request("GET", "/livez")) == (200, ["ok"])
        for path in ("/readyz", "/readyz?verbose", "/readyz?exclude=nope"):
            assert checked(alone.request("GET", path)) == (503, sorted(CORRUPT))
        only = (503, CORRUPT[:1])
        assert checked(alone.request("GET", "/readyz/data_corruption?exclude=data_corruption")) == only
        without = alone.request("GET", "/readyz?exclude=data_corruption&verbose")
        assert checked(without) == (200, [*READY[1:], "ok"])
        assert checked(alone.request("GET", "/readyz/linearizable_read")) == (200, ["ok"])
    with Alarm(alone, rpc.NOSPACE):
        assert checked(alone.request("GET", "/readyz")) == (200, ["ok"])


@pytest.mark.parametrize("path", ["/livez/nope", "/readyz/", "/livez/data_corruption", "/readyz/non_learner/"])
def test_unknown_checks(alone: Subject, path: str) -> None:
    reply = alone.request("GET", path)
    assert (reply.status, reply.body) == (404, b"404 page not found\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_only_get(alone: Subject, path: str) -> None:
    skip_without_checks(alone)
    for verb in ("POST", "PUT", "HEAD"):
        reply = alone.request(verb, path)
        assert (reply.status, reply.headers["Allow"]) == (405, "GET")


def test_the_variables_of_a_process(subject: Subject) -> None:
    reply = subject.request("GET", "/debug/vars")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    known = reply.json()
    assert known["cmdline"]
    assert known["file_descriptor_limit"] > 0
    status = subject.do(rpc.StatusRequest())
    raft, member = known["raft.status"], f"{status.header.member_id:x}"
    assert (raft["id"], raft["lead"], raft["vote"]) == (member, member, member)
    assert (raft["raftState"], raft["term"], list(raft["progress"])) == ("StateLeader", status.raftTerm, [member])
    assert raft["applied"] <= raft["commit"] < raft["progress"][member]["next"]
    before = raft["commit"]
    subject.put(b"a")
    assert subject.request("GET", "/debug/vars").json()["raft.status"]["commit"] > before
    assert subject.request("GET", "/debug/pprof/").status == 404
