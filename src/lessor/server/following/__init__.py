# SPDX-License-Identifier: Apache-2.0
"""What a server answers while another one leads their shared log."""
