"""gRPC, set up in one place: identities, servers, channels, the table of rights, and errors as statuses.

`gateway.process` owns the machine (settings, logs, signals); the servicers live with their services, and so do their tables of
rights; `gateway.stubs` is the wire itself.
"""
