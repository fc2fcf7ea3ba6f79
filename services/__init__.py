"""What answers: `auth` keeps the ledger, `admin` serves administrators, `proxy` is the edge, `demo` a provider to try with.

Each is a process of its own (`python -m services.<name>`) and imports no other; they meet through `gateway.stubs`. What they
share is in `gateway`; what asks them is in `clients`.
"""

import os

# gRPC's own core writes lines of text to standard error, beside the log; who wants them sets the variable himself. It is read
# when gRPC is imported, so it is set in what every service imports first.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
