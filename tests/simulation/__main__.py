# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.simulation --seeds 300 --from 0 [--rules WAY]`: runs seeds, prints each that fails, and counts."""

import argparse
import sys
import time
import traceback

from tests.simulation.broken import WAYS
from tests.simulation.story import Rules, Story
from tests.simulation.world import Broken


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--rules", choices=sorted(WAYS), help="break a rule on purpose")
    parser.add_argument("--failures", type=int, default=3, help="stop after so many")
    options = parser.parse_args()
    rules = WAYS[options.rules] if options.rules else Rules
    began_s, failed, steps, takeovers, done = time.perf_counter(), [], 0, 0, 0
    for seed in range(options.first, options.first + options.seeds):
        story = Story(seed, rules())
        try:
            story.run()
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}, after {story.world.steps} steps:\n{story.world.story()}")
            print(f"seed {seed}: {error}" if isinstance(error, Broken) else traceback.format_exc(), flush=True)
        done += 1
        steps += story.world.steps
        takeovers += story.checks.takeovers
        if len(failed) >= options.failures:
            break
    took_s = time.perf_counter() - began_s
    print(f"{done} seeds in {took_s:.0f} s, {done / took_s:.1f} a second, {steps} steps, {takeovers} claims")
    print(f"failed: {failed}" if failed else "none failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
