"""The machine that a service runs on: settings, logs, signals, and the internal port for probes.

`gateway.rpc` owns gRPC; what a setting means for the domain belongs to the service that reads it.
"""
