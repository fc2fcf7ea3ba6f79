"""What bodies cost to read: for each kind of body the CPU on the event loop and in the process for costly ones, in ms a MiB.

    python -m benchmarks.bodies [--size BYTES]

`loop` is the CPU of this process, where callers are answered; `stall` the longest time for which it answered nobody; `process`
the time that the reading process took, pipes included. Bodies of 64 KiB with a wrong token never reach the process: for them
the check of their kind (`triage`) is all that is paid.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator

from gateway.errors import GatewayError
from services.proxy.reading import Reader, is_costly

_HEAD = b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":'


def _items(item: str | bytes, size: int) -> bytes:
    raw = item if isinstance(item, bytes) else item.encode()
    return _HEAD + b"[" + b",".join([raw] * (size // (len(raw) + 1))) + b"]}"


def _text(text: str, size: int) -> bytes:
    raw = text.encode()
    return b'{"model":"m","messages":[{"role":"user","content":"' + raw * (size // len(raw)) + b'"}]}'


def _messages(message: bytes, size: int) -> bytes:
    return b'{"model":"m","messages":[' + b",".join([message] * (size // (len(message) + 1))) + b"]}"


def kinds(size: int) -> Iterator[tuple[str, bytes]]:
    """Bodies of about this size, each of another kind."""
    for number in ("1e308", "1e-308", "0.1e-400", "1.7976931348623157e308", "0.12345678901234567", "0.5", "1"):
        yield f"numbers {number}", _items(number, size)
    yield "numbers of 999 digits", _items("9" * 999, size)
    yield "fractions of 990 digits", _items("0." + "1" * 990, size)
    for item in ("[]", "{}", '""', "true", '{"a":1}', '{"a":1,"a":1}', '{"a":""}', '"\\u003a"'):
        yield f"items {item}", _items(item, size)
    yield "lists 90 deep", _items("[" * 90 + "]" * 90, size)
    yield "objects 90 deep", _items('{"a":' * 90 + "1" + "}" * 90, size)
    yield "lists without end", _HEAD + b"[" * size
    yield "objects without end", _HEAD + b'{"a":' * (size // 5)
    yield "many keys", _HEAD[:-4] + b",".join(b'"k%d":1' % number for number in range(size // 11)) + b"}"
    yield "one key again and again", _HEAD[:-4] + b",".join([b'"k":1'] * (size // 6)) + b"}"
    for message in (b"{}", b'{"a":[]}', b'{"content":[{"a":""}]}'):
        yield f"messages {message.decode()}", _messages(message, size)
    yield "parts", b'{"model":"m","messages":[{"content":[' + b",".join([b'{"a":""}'] * (size // 9)) + b"]}]}"
    yield "tools", b'{"model":"m","messages":[{}],"tools":[' + b",".join([b"[]"] * (size // 3)) + b"]}"
    texts = {
        "ascii": "a",
        "commas": "a, ",
        "latin": "\u00e9",
        "chinese": "\u6f22",
        "emoji": "hello \U0001f600 ",
        "two combining marks": "\u0301\u0327",
        "one combining mark": "\u0301",
        "ligatures": "\ufdfa",
        "all of the first plane": "".join(chr(code) for code in range(0x80, 0xD800)),
        "all of the second plane": "".join(chr(code) for code in range(0x10000, 0x20000)),
        "all of the other planes": "".join(chr(code) for code in range(0x20000, 0x110000)),
        "escapes of one letter": "\\u00e9",
        "escapes of two halves": "\\ud83d\\ude00",
        "escaped quotes": '\\"',
    }
    for name, text in texts.items():
        if len(text) > 100:  # a whole number of them is more than the size of a small body
            text = text[: max(1, size // len(text[-1].encode()))]  # noqa: PLW2901
        yield f"text: {name}", _text(text, size)
    yield "half of a surrogate pair at the end", _items("{}", size)[:-2] + b',"\\ud83d"]}'


async def _measure(reader: Reader, body: bytes) -> tuple[float, float, float, float, str]:
    started = time.process_time()
    costly = is_costly(body)
    triage = time.process_time() - started
    began, cpu, stall = time.perf_counter(), time.process_time(), 0.0
    reading = asyncio.ensure_future(reader.read(body))
    last = time.perf_counter()
    while not reading.done():
        await asyncio.sleep(0)
        if costly:
            await asyncio.sleep(0.002)
        now = time.perf_counter()
        stall, last = max(stall, now - last - (0.002 if costly else 0.0)), now
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    error = reading.exception()
    if error is not None and not isinstance(error, GatewayError):
        raise error
    return triage, cpu, stall, elapsed if costly else 0.0, "400" if error is not None else ""


async def measure(size: int) -> None:
    """Prints the table."""
    reader = Reader()
    await reader.read(_items("1", 100_000))  # the process is there
    header = f"{'kind':36} {'bytes':>9} {'triage ms':>10} {'loop ms':>8} {'ms/MiB':>7} {'stall ms':>9} {'process ms':>11}"
    print(header + f" {'ms/MiB':>7}")
    for name, body in kinds(size):
        runs = [await _measure(reader, body) for _ in range(3)]
        triage, cpu, stall, elapsed = (min(run[column] for run in runs) * 1000 for column in range(4))
        mebibytes = len(body) / (1 << 20)
        print(
            f"{name:36} {len(body):9} {triage:10.2f} {cpu:8.2f} {cpu / mebibytes:7.1f} {stall:9.2f}"
            f" {elapsed:11.1f} {elapsed / mebibytes:7.1f} {runs[0][4]}",
            flush=True,
        )
    await reader.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=int, default=60_000, help="bytes of each body (default: what one without a token may send)"
    )
    asyncio.run(measure(parser.parse_args().size))
