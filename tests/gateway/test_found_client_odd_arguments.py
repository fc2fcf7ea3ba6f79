"""What a caller of the client may hand over by mistake: told at once, never a wait without end."""

from __future__ import annotations

import math
import time

import pytest

from gateway.errors import InvalidArgument
from tests.gateway.client_harness import real_auth
from tests.support.ledger import MODEL, SECRET


def test_no_limit_of_time_hears_the_answer_and_no_number_is_refused(tmp_path):
    with real_auth(tmp_path) as auth:
        auth.add_token(SECRET)
        with auth.gateway(timeout=math.inf) as gateway:
            began = time.monotonic()
            grant = gateway.validate(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1)
            assert gateway.record_usage(grant, input_tokens=1, timeout=math.inf).delivered
            assert time.monotonic() - began < 10
            with pytest.raises(InvalidArgument):
                gateway.check(SECRET, timeout=math.nan)
        with pytest.raises(InvalidArgument):
            auth.gateway(timeout=math.nan)
