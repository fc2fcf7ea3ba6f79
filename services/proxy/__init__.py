"""The edge: what applications speak HTTP to, and what speaks to the providers.

It owns the HTTP contract, the providers and their keys, routing, streaming, metering and the outbox of settlements. It asks
`services/auth` about every call and opens no database; it hands `/admin` and `/auth` to `services/admin` over gRPC.

aiohttp is used beneath its public interface, where that costs too much or leaves a wait to nobody. These are all of its private
parts that are used, and `tests/proxy/test_aiohttp_contract.py` says which of them went away in another version:
`RequestHandler._close`, `RequestHandler._current_request`, `RequestHandler._force_close`, `RequestHandler._messages`,
`RequestHandler._handle_request`, `RequestHandler._buffer_paused`, `RequestHandler._pause_reading_for_buffer`,
`RequestHandler._resume_reading_for_buffer`, `RequestHandler._resume_reading_if_drained`,
`StreamResponse._send_headers_immediately`, `TCPConnector._factory`, `ResponseHandler._drain_helper`,
`ResponseHandler._parser`, `ResponseHandler._payload`, `ResponseHandler._should_close`, `ResponseHandler._reading_paused`,
`ResponseHandler._buffer_paused`.
"""
