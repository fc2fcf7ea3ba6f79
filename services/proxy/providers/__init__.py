"""Who answers: the configured providers, their keys, and the choice among them.

`services/proxy/dialects` owns what is spoken; `services/proxy/upstream.py` sends the calls.
"""
