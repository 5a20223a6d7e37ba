# SPDX-License-Identifier: Apache-2.0
"""Of several that run this, one leads at a time: `python leader.py ann`. See docs/client.md."""

import asyncio
import sys

from lessor.client import AsyncClient, ClientError, Key, LeaseLost, op


async def main(name: str, endpoint: str = "127.0.0.1:2379") -> None:
    async with AsyncClient(endpoint) as client:
        while True:
            try:
                async with client.election("scheduler", ttl_s=5) as election:
                    token = await election.campaign(name)
                    print(name, "leads with token", token, flush=True)
                    while election.leads:
                        # Nothing is written by one who leads no more, however late it learns of that.
                        tick = op.put("tick", name)
                        done = await client.transaction().when(election.mine, Key("stop").missing).then(tick).commit()
                        if not done.succeeded:
                            return
                        await asyncio.sleep(0.1)
            except LeaseLost as lost:
                print(name, "leads no more:", lost.reason, flush=True)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1:2] == ["--help"]:
        sys.exit("usage: python leader.py NAME [ENDPOINT]")
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as error:
        sys.exit(f"leader: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as the shell says it of a program that Ctrl-C ended
