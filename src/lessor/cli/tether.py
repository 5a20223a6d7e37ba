# SPDX-License-Identifier: Apache-2.0
"""Becomes another program that does not outlive its parent: `python -I -S tether.py PARENT SIGNAL ACCOUNT PROGRAM ...`.

PARENT   the process id of the parent that is meant
SIGNAL   the number of the signal that the program gets when its parent ends, also after kill -9
ACCOUNT  UID:GID to run as, for a parent that is root; - for no change

On Linux the kernel sends the signal (PR_SET_PDEATHSIG). The setting stays over the start of the program, so nothing
runs in between, and the program has the process id that the parent knows. Other systems have nothing like it; there
the program outlives a parent that is killed with -9.

Why not the `preexec_fn` of the parent: it would run Python between fork and exec, while other threads hold locks. Why
not a pipe that a child watches: etcd and PostgreSQL would need a process beside each of them that does it.

This file is run as a script, by a bare interpreter, so it imports the standard library only.
"""

import ctypes
import os
import sys

NO_OTHER_USER = "cannot become the user"
_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Ends the process with one line on stderr when the program cannot be run; otherwise does not return."""
    parent, number, account, *command = words
    if account != "-":
        uid, gid = map(int, account.split(":"))
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        except OSError as error:
            sys.exit(f"{NO_OTHER_USER} {account}: {error.strerror}")
    if sys.platform == "linux":
        # After the change of the user, which would undo it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit("the parent has ended")
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
