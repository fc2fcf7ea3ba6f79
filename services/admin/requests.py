"""RequestLogService: what was called, and what it cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import grpc

from gateway.clock import Clock, to_text
from gateway.errors import NotFound, Overloaded
from gateway.pages import decode_page_token, encode_page_token, page_limit
from gateway.storage.request_log import RequestLog
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc
from services.admin.listing import fill_page
from services.admin.wire import filter_from_proto, refusal_to_proto, request_to_proto

_LIST = "requests"
_TAIL = "tail"

MAX_TAILS = 16
"""How many may follow the log at once; each keeps a thread."""
TAIL_SECONDS = 60.0
_LOOK_EVERY = 0.5  # seconds
_SIGN_OF_LIFE = 10.0  # seconds without a call, after which an empty message says that the stream still runs
_BATCH = 100
# Two auth services do not commit in the order of their clocks: what is younger than this may still get an older neighbour.
_SETTLE = timedelta(seconds=1)


class RequestLogServicer(requests_pb2_grpc.RequestLogServiceServicer):
    """Gives pages of calls, one call, and the calls as they end."""

    def __init__(self, *, requests: RequestLog, clock: Clock) -> None:
        self._requests = requests
        self._clock = clock
        self._tails = threading.BoundedSemaphore(MAX_TAILS)

    def ListRequests(
        self, request: requests_pb2.ListRequestsRequest, context: grpc.ServicerContext
    ) -> requests_pb2.ListRequestsResponse:
        """A page of calls, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, str)
        before_id = "" if after is None else str(after[0])
        found = self._requests.page(filter_from_proto(request.filter), limit=limit + 1, before_id=before_id)
        calls, next_page_token = fill_page(
            _LIST, found, limit=limit, to_message=request_to_proto, position=lambda call: (call.request_id,)
        )
        return requests_pb2.ListRequestsResponse(requests=calls, next_page_token=next_page_token)

    def GetRequest(
        self, request: requests_pb2.GetRequestRequest, context: grpc.ServicerContext
    ) -> requests_pb2.GetRequestResponse:
        """One call, or one refusal."""
        try:
            return requests_pb2.GetRequestResponse(request=request_to_proto(self._requests.get(request.request_id)))
        except NotFound:
            refusal = self._requests.refusal(request.request_id)
            if refusal is None:
                raise
            return requests_pb2.GetRequestResponse(refusal=refusal_to_proto(refusal))

    def TailRequests(
        self, request: requests_pb2.TailRequestsRequest, context: grpc.ServicerContext
    ) -> Iterator[requests_pb2.TailRequestsResponse]:
        """Calls as they end, for a minute at most."""
        wanted = filter_from_proto(request.filter)
        after = decode_page_token(_TAIL, request.cursor, str, str)
        position = (to_text(self._clock.now()), "") if after is None else (str(after[0]), str(after[1]))
        gone = threading.Event()
        if not self._tails.acquire(blocking=False):
            raise Overloaded(f"{MAX_TAILS} are reading already; try again later", retry_after=5.0)
        try:
            context.add_callback(gone.set)
            started = told = self._clock.monotonic()
            yield requests_pb2.TailRequestsResponse(cursor=encode_page_token(_TAIL, *position))
            while context.is_active() and self._clock.monotonic() - started < TAIL_SECONDS:
                calls, position = self._requests.ended(wanted, after=position, until=self._clock.now() - _SETTLE, limit=_BATCH)
                if calls or self._clock.monotonic() - told >= _SIGN_OF_LIFE:
                    told = self._clock.monotonic()
                    yield requests_pb2.TailRequestsResponse(
                        requests=[request_to_proto(call) for call in calls], cursor=encode_page_token(_TAIL, *position)
                    )
                if len(calls) < _BATCH:
                    gone.wait(_LOOK_EVERY)
        finally:
            self._tails.release()
