"""AuditService: reads the audit log."""

from __future__ import annotations

import grpc

from gateway.pages import decode_page_token, page_limit
from gateway.storage.audit import AuditLog
from gateway.stubs.admin.v1 import audit_pb2, audit_pb2_grpc
from services.admin.listing import fill_page, filter_text
from services.admin.wire import audit_to_proto

_LIST = "audit"


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Gives pages of records."""

    def __init__(self, *, audit: AuditLog) -> None:
        self._audit = audit

    def ListAuditRecords(
        self, request: audit_pb2.ListAuditRecordsRequest, context: grpc.ServicerContext
    ) -> audit_pb2.ListAuditRecordsResponse:
        """A page of records, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, int)
        before_id = None if after is None else int(after[0])
        found = self._audit.page(
            limit=limit + 1,
            before_id=before_id,
            action=filter_text("action", request.action),
            subject=filter_text("subject", request.subject),
        )
        records, next_page_token = fill_page(
            _LIST, found, limit=limit, to_message=audit_to_proto, position=lambda entry: (entry.id,)
        )
        return audit_pb2.ListAuditRecordsResponse(records=records, next_page_token=next_page_token)
