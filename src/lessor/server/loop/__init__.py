# SPDX-License-Identifier: Apache-2.0
"""The event loop's own: the order of a turn, what waits for the disk, the life of a call."""
