# SPDX-License-Identifier: Apache-2.0
"""Shows who is registered as `web`, and who comes and goes: `python finder.py`. See docs/client.md."""

import sys

from lessor.client import Client, ClientError


def main(endpoint: str = "127.0.0.1:2379") -> None:
    with Client(endpoint) as client, client.discover("web") as web:
        print("there are", list(web.addresses), flush=True)
        for change in web:
            print(change.kind, change.instance.address, flush=True)


if __name__ == "__main__":
    if not 1 <= len(sys.argv) <= 2 or sys.argv[1:2] == ["--help"]:
        sys.exit("usage: python finder.py [ENDPOINT]")
    try:
        main(*sys.argv[1:])
    except ClientError as error:
        sys.exit(f"finder: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as the shell says it of a program that Ctrl-C ended
