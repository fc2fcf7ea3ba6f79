"""The `gateway` command: starts the suite, prepares a host, and manages tokens through the admin service.

Only `init`, `migrate`, `reconcile`, `check`, `backup` and `restore` (init.py, host.py, check.py, inspection.py, backup.py) open
the database; service commands become `python -m services.<name>`; everything else asks admin over gRPC with the operator's
certificate.
"""

import os

# A failure is one line on standard error: gRPC's own core would add lines of its own. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
