# SPDX-License-Identifier: Apache-2.0
"""The systems that can keep a shared log: one adapter each, of the protocol in durable/shared_log.py."""
