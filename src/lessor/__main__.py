# SPDX-License-Identifier: Apache-2.0
"""`python -m lessor` is the `lessor` command."""

from lessor.cli.main import main

main()
