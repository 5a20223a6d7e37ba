# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

import os

# grpcio, our tests' client, gives up a child process that is forked while its threads run; those of ours that fork use
# no gRPC in the child. It reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
