# SPDX-License-Identifier: Apache-2.0
"""How a command ends when it does not succeed: etcdctl's exit codes, and the one exception that carries them.

Law: a command that cannot go on raises `Failure`; only main.py prints it and exits. Its text is one line: the server's
own words, unchanged, where the server has some, and otherwise the error and what to do about it.
"""

# The numbers are etcdctl's.
ERROR = 1
BAD_CONNECTION = 2
INVALID_INPUT = 3  # of an interactive session
BAD_FEATURE = 4  # a known flag with an unknown value
INTERRUPTED = 5  # a watch that the server ended
BAD_ARGS = 128
# The shell's numbers for a program that a signal ended.
CTRL_C = 130
CLOSED_PIPE = 141


class Failure(Exception):  # noqa: N818 - a command's end, not always an error of ours
    """Ends the command: `text` goes to stderr after "Error: ", the process exits with `exit_code`."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text
