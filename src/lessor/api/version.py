# SPDX-License-Identifier: Apache-2.0
"""The version of etcd that Lessor reports. Clients choose features and URL prefixes by it."""

from lessor import __version__

ETCD_VERSION = "3.7.0"
CLUSTER_VERSION = "3.7"  # as Downgrade spells it


def text() -> str:
    """What the commands print for their version: of this program, and of the etcd API that it speaks."""
    return f"lessor version: {__version__}\nAPI version: {CLUSTER_VERSION}\n"
