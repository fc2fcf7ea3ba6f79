"""The admin service: administrators, their sessions, client tokens, the request log and the audit log, over gRPC.

`gateway.storage` owns the tables and what may be done to them, `gateway.rpc` the server and who is let in; the HTTP door to the
RPCs here is the proxy's (`services/proxy/admin_http.py`). Nothing here is on the way of a model call.
"""
