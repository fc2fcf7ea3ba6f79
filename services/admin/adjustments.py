"""AdjustmentService: corrections of what tokens have spent."""

from __future__ import annotations

import grpc

from gateway.pages import decode_page_token, page_limit
from gateway.storage.adjustments import Adjustment, AdjustmentStore
from gateway.stubs.admin.v1 import adjustments_pb2, adjustments_pb2_grpc
from services.admin.callers import actor
from services.admin.listing import fill_page
from services.admin.wire import moment_to_proto

_LIST = "adjustments"


class AdjustmentServicer(adjustments_pb2_grpc.AdjustmentServiceServicer):
    """Books corrections in the name of the one who calls, and lists them."""

    def __init__(self, *, adjustments: AdjustmentStore) -> None:
        self._adjustments = adjustments

    def CreateAdjustment(
        self, request: adjustments_pb2.CreateAdjustmentRequest, context: grpc.ServicerContext
    ) -> adjustments_pb2.CreateAdjustmentResponse:
        """Books a correction."""
        booked = self._adjustments.create(
            request.token_id, request.amount_nanos, request.reason, actor=actor(context), request_id=request.request_id
        )
        return adjustments_pb2.CreateAdjustmentResponse(
            adjustment=_to_proto(booked.adjustment), amount_spent_nanos=booked.amount_spent_nanos
        )

    def ListAdjustments(
        self, request: adjustments_pb2.ListAdjustmentsRequest, context: grpc.ServicerContext
    ) -> adjustments_pb2.ListAdjustmentsResponse:
        """A page of a token's corrections, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, int)
        before_id = None if after is None else int(after[0])
        found = self._adjustments.page(request.token_id, limit=limit + 1, before_id=before_id)
        adjustments, next_page_token = fill_page(
            _LIST, found, limit=limit, to_message=_to_proto, position=lambda adjustment: (adjustment.id,)
        )
        return adjustments_pb2.ListAdjustmentsResponse(adjustments=adjustments, next_page_token=next_page_token)


def _to_proto(adjustment: Adjustment) -> adjustments_pb2.Adjustment:
    return adjustments_pb2.Adjustment(
        id=adjustment.id,
        token_id=adjustment.token_id,
        amount_nanos=adjustment.amount_nanos,
        reason=adjustment.reason,
        actor=adjustment.actor,
        created_at=moment_to_proto(adjustment.created_at),
    )
