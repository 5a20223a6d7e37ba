# SPDX-License-Identifier: Apache-2.0
"""Sockets, the two protocols on them, and the two codecs of calls."""
