"""What callers speak, a file a dialect: where its fields are, how its chunks and usage look.

`services/proxy/providers` owns who answers; `services/proxy/relay.py` passes the bytes on.
"""
