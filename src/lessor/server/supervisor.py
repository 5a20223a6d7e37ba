# SPDX-License-Identifier: Apache-2.0
"""What systemd is told that has started this process with Type=notify, by its protocol (sd_notify)."""

import contextlib
import os
import socket

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def tell(state: str) -> None:
    """Sends one of the states. Does nothing without NOTIFY_SOCKET, or when nobody listens there."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)  # a supervisor that does not read holds nothing up
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(state.encode())


def alive_every_s() -> float | None:
    """How often ALIVE is to be told: twice in the time of WatchdogSec. None: nobody waits for it."""
    try:
        within_us = int(os.environ.get("WATCHDOG_USEC", ""))
        meant = int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return within_us / 2e6 if meant and within_us > 0 else None
