"""The edge: what applications speak HTTP to, and what speaks to the providers.

It owns the HTTP contract, the providers and their keys, routing, streaming, metering and the outbox of settlements. It asks
`services/auth` about every call and opens no database; it hands `/admin` and `/auth` to `services/admin` over gRPC.
"""
