# SPDX-License-Identifier: Apache-2.0
"""How many events per second 500 watchers of one key are told, on ten connections. Ours and etcd in turn.

Once with all watchers of a connection on one stream, as Go's client has them, and once with a stream for each. Eight
puts are under way at a time, each until all of its events have come. The load is that of many_watchers.py; every event
is checked.
"""

import sys

from bench import side_by_side

WATCHERS = 500


def main() -> int:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    load = ["--watchers", WATCHERS, "--seconds", options.seconds]
    cases = {case: [*load, "--case", case] for case in ("fanout_few_streams", "fanout_streams")}
    return side_by_side.run("watch_fanout", options, cases, per=WATCHERS, load="many_watchers")


if __name__ == "__main__":
    sys.exit(main())
