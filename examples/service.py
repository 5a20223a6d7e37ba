# SPDX-License-Identifier: Apache-2.0
"""A service that can be found while it lives: `python service.py 10.0.0.5:8080`. See docs/client.md."""

import sys
import time

from lessor.client import Client, ClientError


def main(address: str, endpoint: str = "127.0.0.1:2379") -> None:
    with Client(endpoint) as client, client.register("web", address, ttl_s=2):
        print("registered", address, flush=True)
        while True:
            time.sleep(1)  # here the service does its work


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1:2] == ["--help"]:
        sys.exit("usage: python service.py ADDRESS [ENDPOINT]")
    try:
        main(*sys.argv[1:])
    except ClientError as error:
        sys.exit(f"service: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as the shell says it of a program that Ctrl-C ended
