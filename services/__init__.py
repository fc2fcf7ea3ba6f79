"""What answers: `auth` keeps the ledger, `admin` serves administrators, `proxy` is the edge, `demo` a provider to try with.

Each is a process of its own (`python -m services.<name>`) and imports no other; they meet through `gateway.stubs`. What they
share is in `gateway`; what asks them is in `clients`.
"""
