"""The auth service: admits calls, holds their money and settles them, over gRPC.

It alone writes the ledger. It speaks no HTTP to callers and knows no provider's key; `services/proxy` asks it about every call.
"""
