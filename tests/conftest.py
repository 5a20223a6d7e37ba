# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

import os
import signal

# A shell starts a background job with SIGINT ignored, and a child process inherits that. Tests interrupt servers,
# clients and themselves as Ctrl-C does, so they need the default again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# grpcio, our tests' client, gives up a child process that is forked while its threads run; those of ours that fork use
# no gRPC in the child. It reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
