"""The process that reads costly bodies for the proxy: a body comes on standard input, what it asks for goes to standard output.

`python -m services.proxy.body_worker`, started by `body_process`. It ends when its input does. A body that takes more
CPU than `LONGEST` ends it too; the largest and densest body that is allowed takes half a second.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Final

import msgspec

from gateway import text_bound
from gateway.errors import InvalidRequest
from services.proxy import strict_json
from services.proxy.body_process import LENGTH, Result
from services.proxy.dialects.openai import read_chat

LONGEST: Final = 20.0
"""Seconds of CPU that one body may take."""
_NICENESS: Final = 19


def main() -> None:
    """Reads bodies until there are no more."""
    _give_way_to_calls()
    text_bound.prepare()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    encode = msgspec.msgpack.Encoder().encode
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        body = source.read(length)
        if len(body) < length:
            return
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        result = encode(read(body))
        signal.setitimer(signal.ITIMER_PROF, 0)
        del body
        sink.write(LENGTH.pack(len(result)) + result)
        sink.flush()


def _give_way_to_calls() -> None:
    """Has the event loop come first where both want the same core; at a niceness of 5 its p99 was doubled."""
    os.nice(_NICENESS)
    if sys.platform == "linux":  # who is only nice finishes his slice of some milliseconds before the loop has its turn
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def read(body: bytes) -> Result:
    """What comes of one body."""
    try:
        call = read_chat(strict_json.read(body))
    except InvalidRequest as fault:
        return Result(fault=fault.message, metadata=fault.metadata)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Result(failed=f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}")
    call.locate()
    call.bound.thin()
    call.body = b""
    return Result(call=call)


if __name__ == "__main__":
    main()
