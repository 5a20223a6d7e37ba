# SPDX-License-Identifier: Apache-2.0
"""The version of etcd that Lessor reports. Clients choose features and URL prefixes by it."""

ETCD_VERSION = "3.7.0"
CLUSTER_VERSION = "3.7"  # as Downgrade spells it
