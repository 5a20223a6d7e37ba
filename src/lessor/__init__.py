# SPDX-License-Identifier: Apache-2.0
"""Lessor: an etcd v3-compatible lease server, client and test kit."""

__version__ = "0.1.0"
