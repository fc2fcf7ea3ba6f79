"""UsageService: what was used, summed up."""

from __future__ import annotations

from dataclasses import asdict

import grpc

from gateway.pages import decode_page_token, page_limit
from gateway.storage.customers import CustomerStore, CustomerTotals
from gateway.stubs.admin.v1 import usage_pb2, usage_pb2_grpc
from services.admin.listing import fill_page

_LIST = "customers"


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """Reads sums through the store."""

    def __init__(self, *, customers: CustomerStore) -> None:
        self._customers = customers

    def ListCustomers(
        self, request: usage_pb2.ListCustomersRequest, context: grpc.ServicerContext
    ) -> usage_pb2.ListCustomersResponse:
        """A page of customers' totals, by name."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, str)
        found = self._customers.page(limit=limit + 1, after=None if after is None else str(after[0]))
        customers, next_page_token = fill_page(
            _LIST, found, limit=limit, to_message=_to_proto, position=lambda totals: (totals.customer,)
        )
        return usage_pb2.ListCustomersResponse(customers=customers, next_page_token=next_page_token)


def _to_proto(totals: CustomerTotals) -> usage_pb2.CustomerUsage:
    return usage_pb2.CustomerUsage(**asdict(totals))
