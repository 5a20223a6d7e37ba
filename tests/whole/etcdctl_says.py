# SPDX-License-Identifier: Apache-2.0
"""What etcdctl 3.7 has and says: its commands and flags, and its answer to each of `LINES` in each format.

    ETCD_BIN=.../etcd ETCDCTL_BIN=.../etcdctl python -m tests.whole.etcdctl_says [WORD]

asks an etcdctl and an etcd of 3.7 and writes it to tests/data; with WORD, only about the lines that contain it. So our
command is compared with 3.7 on machines without it too; where it is, test_cli_every_command.py holds that it still says
the same.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance.auth_peer import CHEAP
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.etcdctl import find_etcdctl
from tests.whole.cli_lines import FORMATS, LINES, Meeting
from tests.whole.test_cli_beside_etcdctl import Outcome

FILE = Path(__file__).parents[1] / "data" / "etcdctl-3.7.json"
# By the name of a command, "" for the flags of all: the short form of each flag ("" if none), the long one, and whether
# it takes no value.
Tree = dict[str, list[tuple[str, str, bool]]]


def tree_of(etcdctl: Path) -> Tree:
    """The tree that the help of an etcdctl of 3.7 shows."""

    def printed(*line: str) -> str:
        return subprocess.run([etcdctl, *line], capture_output=True, text=True).stdout

    def below(*name: str) -> list[tuple[str, ...]]:
        """The commands that do something by themselves."""
        sections = re.findall(
            r"^(?:Available Commands:|[A-Z].* commands)\n((?:  .+\n)+)", printed(*name, "--help"), re.MULTILINE
        )
        words = [line.split()[0] for section in sections for line in section.splitlines()]
        return [leaf for word in words for leaf in below(*name, word)] if words else [name]

    def flags(listed: str) -> list[tuple[str, str, bool]]:
        found = re.findall(r"^ +(?:(-\w), )?--([\w-]+)( \w+)?   ", listed, re.MULTILINE)
        return [(short, flag, not kind) for short, flag, kind in found]

    tree = {" ".join(name): flags(printed(*name, "--help")) for name in below()}
    return {"": flags(printed("options")), **tree}


def facts() -> tuple[Tree, dict[str, dict[str, Outcome]]]:
    """The tree, and by line and format the outcome."""
    known = json.loads(FILE.read_text())
    tree = {name: [(short, flag, alone) for short, flag, alone in flags] for name, flags in known["tree"].items()}
    lines: dict[str, dict[str, Outcome]] = {}
    for line, outcomes in known["lines"].items():
        lines[line] = {}
        for each in FORMATS:
            code, out, err = outcomes.get(each) or outcomes["*"]  # "*": the formats that are not named
            lines[line][each] = code, out, err
    return tree, lines


def packed(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    every = list(outcomes.values())
    common = max(every, key=every.count)
    return {"*": common, **{each: outcome for each, outcome in outcomes.items() if outcome != common}}


def record(word: str) -> None:
    etcdctl = find_etcdctl()
    assert etcdctl is not None
    lines = json.loads(FILE.read_text())["lines"] if word else {}
    with EtcdServer(flags=CHEAP) as server, tempfile.TemporaryDirectory() as tmp:
        meeting = Meeting(server, "etcd", etcdctl, Path(tmp))
        for line in LINES:
            if word in line.text:
                lines[line.text] = packed(meeting.outcomes(line, meeting.etcdctl))
    ordered = {line.text: lines[line.text] for line in LINES}
    FILE.write_text(json.dumps({"tree": tree_of(etcdctl), "lines": ordered}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record(sys.argv[1] if sys.argv[1:] else "")
