"""The proxy's side of the process that reads costly bodies: `body_worker` is the other side.

Bodies and results travel over pipes. Writing and waiting need no interpreter's lock, so the event loop goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import Internal, InvalidRequest
from services.proxy.dialects.openai import ChatCall

LENGTH: Final = struct.Struct(">Q")
"""What stands before each body and each result: its length."""
_PIPE: Final = 1 << 20  # bytes: the most that Linux gives without a privilege; fewer switches between the two processes
_PASSED_ON: Final = ("PYTHON", "LD_", "DYLD_")
"""What the names of the environment variables begin with that Python may need to start; provider keys are not among them."""
_ROOT: Final = Path(__file__).resolve().parents[2]


class Result(msgspec.Struct):
    """What came of one body: a call, or the fault of the body, or that reading failed."""

    call: ChatCall | None = None
    """Without its body, which the asker has."""
    fault: str = ""
    """The message of the InvalidRequest."""
    metadata: dict[str, str] = {}
    failed: str = ""
    """An exception that nobody foresaw: its type and place."""


class ProcessEnded(Exception):
    """The process ended while it read a body."""


class BodyProcess:
    """Starts the process when it is needed. All methods but `kill` are for one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._decode = msgspec.msgpack.Decoder(Result).decode

    def read(self, body: bytes) -> ChatCall:
        """The call in a body. Raises InvalidRequest, ProcessEnded, Internal."""
        result = self._decode(self._exchange(body))
        if result.failed:
            raise Internal(result.failed)
        if result.call is None:
            raise InvalidRequest(result.fault, metadata=result.metadata)
        result.call.body = body
        return result.call

    def _exchange(self, body: bytes) -> bytes:
        process = self._process
        if process is None or process.poll() is not None:
            self.stop()
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(LENGTH.pack(len(body)))
            left = memoryview(body)
            while left:
                left = left[process.stdin.write(left) :]
            (length,) = LENGTH.unpack(_exactly(process.stdout.fileno(), LENGTH.size))
            return _exactly(process.stdout.fileno(), length)
        except OSError as error:
            self.stop()
            raise ProcessEnded(type(error).__name__) from None

    def _start(self) -> subprocess.Popen[bytes]:
        # A group of its own: Ctrl-C in a terminal is for the proxy alone, which ends this process by closing its pipe. A
        # session of its own would do that, too, but Linux shares cores between sessions before it looks at priorities.
        process = subprocess.Popen(
            [sys.executable, "-m", "services.proxy.body_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
            process_group=0,
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
        return process

    def kill(self) -> None:
        """Ends the process at once, from any thread; whoever waits for it gets ProcessEnded."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Ends the process, if there is one, and takes its memory back."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            process.wait()


def _exactly(descriptor: int, count: int) -> bytes:
    """So many bytes. Raises ConnectionError when there are fewer."""
    data = bytearray()
    while len(data) < count:
        part = os.read(descriptor, count - len(data))
        if not part:
            raise ConnectionError("the process ended")
        data += part
    return bytes(data)
