# SPDX-License-Identifier: Apache-2.0
"""The commands that look after servers, beside the real etcdctl: the same line to the same server, all compared.

Durations are blanked, and sizes and raft's figures, which move between two calls. ETCDCTL_BIN names the etcdctl;
otherwise it is the one beside the etcd. One of before 3.6 prints otherwise, so these tests are skipped then; how
3.6 differs from 3.7 is in `as_3_7`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.conformance.etcdctl import as_3_7, etcdctl_binary, etcdctl_like
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import ServerProcess

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

Outcome = tuple[int, str, str]


class Scene:
    """A server with a few revisions, and the two command lines."""

    def __init__(self, server: ServerProcess, etcdctl: Path) -> None:
        self.server = server
        self._etcdctl = etcdctl
        self.member_id, self.peer_urls = run(self._set())

    async def _set(self) -> tuple[int, str]:
        async with AsyncClient(self.server.address) as client:
            for value in "1234":
                await client.put("a", value)
            reply = await client.call("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest())
            (member,) = reply.members  # type: ignore[attr-defined]
            return member.ID, ",".join(member.peerURLs)

    def outcomes(self, line: str) -> tuple[Outcome, Outcome]:
        """(ours; etcdctl's, spelt as that of 3.7)."""
        args = line.format(me=f"{self.member_id:x}", urls=self.peer_urls, url=self.server.client_url).split()
        ours = self._outcome([sys.executable, "-m", "lessor", *args])
        code, out, err = self._outcome([str(self._etcdctl), *args])
        return ours, (code, out if etcdctl_like(3, 7) else as_3_7(out), err)

    def _outcome(self, command: list[str]) -> Outcome:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
        environment["ETCDCTL_ENDPOINTS"] = self.server.address
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
        errors = [line for line in done.stderr.splitlines() if not line.startswith('{"level":')]
        return done.returncode, blanked(done.stdout), blanked("\n".join(errors))


def blanked(text: str) -> str:
    text = re.sub(r"\d+(\.\d+)?(ms|µs|s)\b", "T", text)
    text = re.sub(r"(memberID:\d+) +(?=alarm:)", r"\1 ", text)  # builds of etcdctl 3.7 have one space or two
    text = re.sub(r", [\d.]+ [kM]?B, [\d.]+ [kM]?B, \d+%", ", SIZES", text)
    text = re.sub(r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":\d+', r'"\1":N', text)
    text = re.sub(r'"(DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex)" : \d+', r'"\1" : N', text)
    return re.sub(r"(true, false, \d+), \d+, \d+, ", r"\1, N, N, ", text)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    etcdctl = etcdctl_binary()
    if not etcdctl_like(3, 6):
        pytest.skip("an etcdctl of 3.6 or newer is needed: set ETCDCTL_BIN")
    with LessorServer() as server:
        yield Scene(server, etcdctl)


EVERY_FORMAT = [
    *("endpoint status", "endpoint hashkv", "endpoint hashkv --rev 3", "endpoint status --hex"),
    *("member list", "member list --hex", "alarm list", "member update {me} --peer-urls={urls}"),
]
LINES = [
    *(
        f"{line} -w {form}"
        for line in EVERY_FORMAT
        for form in ("simple", "json", "fields", "xx")
        if "update" not in line
    ),
    *("member update {me} --peer-urls={urls}", "member update {me} --peer-urls={urls} -w json"),
    *("endpoint hashkv -w table", "member list -w table", "alarm list -w table", "endpoint status -w protobuf"),
    *("endpoint health", "endpoint health -w json", "endpoint health -w fields", "endpoint health x"),
    *("endpoint status --cluster", "endpoint health --cluster", "endpoint hashkv --rev 99", "endpoint status -w xx"),
    *("alarm disarm", "alarm disarm -w json", "alarm list x", "alarm disarm x"),
    *("defrag", "defrag --cluster", "defrag -w json", "defrag -w xx"),
    *("compaction", "compaction abc", "compaction 99", "compaction 1 2"),
    *("move-leader {me}", "move-leader {me} -w json", "move-leader", "move-leader zz", "move-leader 99"),
    *("member add", "member add x", "member add x --peer-urls={urls}", "member list extra"),
    *("member remove", "member remove zz", "member remove 99", "member remove 99 -w json", "member remove {me}"),
    *("member update", "member update 99", "member update 99 --peer-urls=http://127.0.0.1:9"),
    *("member promote", "member promote 99", "member promote {me}", "member promote zz"),
    *("downgrade validate 3.5", "downgrade validate", "downgrade validate 9.9", "downgrade validate 3.5 -w json"),
    *("downgrade cancel", "snapshot save", "snapshot save a b", "snapshot save /nowhere/x"),
]


@pytest.mark.parametrize("line", LINES)
def test_as_etcdctl(scene: Scene, line: str) -> None:
    ours, etcdctls = scene.outcomes(line)
    assert ours == etcdctls


def test_compaction(scene: Scene) -> None:
    ours, etcdctls = scene.outcomes("compaction 2")
    assert ours == (0, "compacted revision 2\n", "")
    assert etcdctls[0] == 1  # by now it has been compacted
    assert scene.outcomes("compaction 2")[0] == etcdctls


def test_alarms_that_are_up(scene: Scene) -> None:
    async def activate() -> None:
        async with AsyncClient(scene.server.address) as client:
            action = rpc.AlarmRequest.ACTIVATE
            request = rpc.AlarmRequest(action=action, memberID=scene.member_id, alarm=rpc.NOSPACE)
            await client.call("/etcdserverpb.Maintenance/Alarm", request)

    run(activate())
    for line in ("alarm list", "alarm list -w json", "alarm list -w fields", "endpoint status", "endpoint health"):
        for form in ("", " -w json", " -w fields") if " -w" not in line else ("",):
            ours, etcdctls = scene.outcomes(line + form)
            assert ours == etcdctls
    ours, etcdctls = scene.outcomes("alarm disarm")
    assert ours[:2] == (0, f"memberID:{scene.member_id} alarm:NOSPACE\n")
    assert etcdctls[:2] == (0, "")


def test_a_snapshot_goes_from_the_server_to_the_file_and_back(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "saved.db"
    ours, etcdctls = scene.outcomes(f"snapshot save {path}")
    said = (0, f"Snapshot saved at {path}\nServer version 3.7.0\n")
    assert ours[:2] == etcdctls[:2] == said
    assert [file.name for file in tmp_path.iterdir()] == ["saved.db"]
    # In Lessor's own form the number of the content is that of the server's.
    own = [sys.executable, "-m", "lessor", "snapshot", "save", str(path), "--endpoints", scene.server.address]
    subprocess.run(own, capture_output=True, check=True)
    hash_, revision = subprocess.run(
        [sys.executable, "-m", "lessor", "endpoint", "hashkv", "--endpoints", scene.server.address],
        capture_output=True, text=True, check=True,
    ).stdout.strip().split(", ")[1:]  # fmt: skip
    ours, _ = scene.outcomes(f"snapshot status {path}")
    assert ours[0] == 0
    assert ours[1].startswith(f"{int(hash_):x}, {revision}, ")
    ours, _ = scene.outcomes(f"snapshot restore {path} --data-dir {tmp_path / 'new'}")
    assert ours[0] == 0
    ours, _ = scene.outcomes(f"snapshot restore {path} --data-dir {tmp_path / 'new'}")
    assert (ours[0], ours[2].count("\n")) == (1, 0)
    assert ours[2].startswith("Error: data-dir")
