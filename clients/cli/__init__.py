"""The `gateway` command: starts the suite, prepares a host, and manages tokens through the admin service.

Only `init`, `migrate`, `reconcile` and `check` (init.py, host.py, check.py, inspection.py) open the database; service commands
become `python -m services.<name>`; everything else asks admin over gRPC with the operator's certificate.
"""
