# SPDX-License-Identifier: Apache-2.0
"""Shows who is registered as `web`, and who comes and goes: `python finder.py`. See docs/client.md."""

import sys

from lessor.client import Client


def main(endpoint: str = "127.0.0.1:2379") -> None:
    with Client(endpoint) as client, client.discover("web") as web:
        print("there are", list(web.addresses), flush=True)
        for change in web:
            print(change.kind, change.instance.address, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
