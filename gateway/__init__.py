"""What the suite knows: the rules of tokens, money, usage, prices and quotas, in plain Python without input or output.

Neighbours: `gateway.storage` owns SQL, `gateway.rpc` owns gRPC, `gateway.process` owns the machine (settings, logs, signals);
`gateway.client` asks auth on behalf of internal services;
`services/` answer, `clients/` ask.
"""
