# SPDX-License-Identifier: Apache-2.0
"""Counters, and the pages and logs that show them: metrics, health, debug variables."""
