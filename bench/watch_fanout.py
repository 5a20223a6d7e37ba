# SPDX-License-Identifier: Apache-2.0
"""How many events per second 500 watchers of one key are told, on ten connections.

Once with all watchers of a connection on one stream, as Go's client has them, and once with a stream for each. Eight
puts are under way at a time, each until all of its events have come. The load is that of many_watchers.py; every event
is checked.
"""

import sys

from bench import crowds
from bench.rows import Goal, Row, main

WATCHERS = 500


def fanout(name: str, case: str, text: str) -> Row:
    goal = Goal("events_per_s", text, "/s", 1.5)
    load = ("--case", case, "--watchers", WATCHERS, "--seconds", 5)
    return crowds.row(name, "many_watchers", WATCHERS, (goal,), *load)


ROWS = (
    fanout("watch_fanout", "fanout_few_streams", "watch events to 500 watchers of one key, 10 streams"),
    fanout("watch_fanout_streams", "fanout_streams", "watch events to 500 watchers of one key, 500 streams"),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
