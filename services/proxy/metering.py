"""What a call used: the provider's own numbers where there are any, what was counted where there are none.

`Meter` counts what passes. `StreamMeter` decides besides, event by event, what of a stream the caller gets: all of it, byte for
byte, but for the usage chunk that he did not ask for; and it holds the last event back until the call is on the books.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway import usage as units
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.bounds import InputBound
from services.proxy.dialects.openai_chunks import DONE, Chunk, read_chunk, texts_of, usage_of
from services.proxy.dialects.openai_usage import Usage, read_usage
from services.proxy.estimate import tokens_of
from services.proxy.sse import EventSplitter, data_of

_FLUSH = 4096
"""Characters that are gathered before they are counted: most answers end, with the provider's usage, before that."""


@dataclass(slots=True)
class Reading:
    """What the meter says of a call."""

    outcome: pb.Outcome.ValueType
    source: pb.UsageSource.ValueType
    items: dict[str, int]
    usage_text: str = ""


class Meter:
    """Counts one answer.

    bound: of the request, for the input estimate. limit: the output limit for one choice, granted or stated; None: unknown.
    choices: how many answers were asked for.
    """

    def __init__(self, *, bound: InputBound, limit: int | None, choices: int) -> None:
        self._bound = bound
        self._limit = limit
        self._choices = choices
        self._input: int | None = None
        self._texts: list[str] = []
        self._size = 0
        self._counted = 0
        self._deltas = 0
        self._usage: Usage | None = None
        self._at_usage = 0
        self.response_model = ""
        self._fresh: list[str] = []
        self.finished = False
        """Whether a choice came to its end."""

    def count(self, chunk: Chunk) -> None:
        """Counts a chunk, or a whole completion."""
        if chunk.choices:
            texts = texts_of(chunk.choices)
            if texts:
                self._deltas += 1
                self._texts += texts
                self._fresh += texts
                for text in texts:
                    self._size += len(text)
                if self._size > _FLUSH:
                    self._flush()
            for choice in chunk.choices:
                if choice.finish_reason is not None:
                    self.finished = True
        raw = usage_of(chunk)
        if raw:
            usage = read_usage(raw)
            if usage is not None:
                self._usage = usage
                self._at_usage = self._deltas
        if not self.response_model and isinstance(chunk.model, str):
            self.response_model = chunk.model[:256]

    def take_fresh(self) -> list[str]:
        """The texts that came since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def count_fragment(self, body: bytes) -> None:
        """Counts the beginning of a whole completion that broke off."""
        _, found, text = body.partition(b'"content":')
        if found:
            self._texts.append(text.decode("utf-8", "ignore"))

    def _flush(self) -> None:
        self._counted += tokens_of("".join(self._texts))
        self._texts = []
        self._size = 0

    def output_estimate(self) -> int:
        """About how many tokens were generated so far, at most what the limit allows."""
        self._flush()
        tokens = max(self._counted, self._deltas)
        return tokens if self._limit is None else min(tokens, self._limit * self._choices)

    def input_estimate(self) -> int:
        """About how many tokens the request was."""
        if self._input is None:
            self._input = self._bound.estimate()
        return self._input

    def reading(self) -> Reading:
        """What the call used.

        A usage that more text followed is not the provider's last word, whether the answer came to its end or not: an estimate
        of that text completes it.
        """
        usage = self._usage
        if usage is None:
            return self._estimated({})
        if not usage.plausible:
            # With the provider as the source the ledger counts it among what was not believed.
            return Reading(pb.OUTCOME_SETTLED_AT_HOLD, pb.USAGE_SOURCE_PROVIDER, {}, usage.text)
        if not usage.whole:
            return self._estimated(usage.items, usage.text)
        if self._at_usage == self._deltas:
            return Reading(pb.OUTCOME_SETTLED, pb.USAGE_SOURCE_PROVIDER, usage.items, usage.text)
        since = self._deltas - self._at_usage
        output = max(usage.items[units.OUTPUT] + since, self.output_estimate())
        return Reading(pb.OUTCOME_SETTLED, pb.USAGE_SOURCE_ESTIMATED, {**usage.items, units.OUTPUT: output}, usage.text)

    def _estimated(self, known: dict[str, int], text: str = "") -> Reading:
        items = {units.INPUT: self.input_estimate(), units.OUTPUT: self.output_estimate(), **known}
        return Reading(pb.OUTCOME_SETTLED, pb.USAGE_SOURCE_ESTIMATED, items, text)


class StreamMeter(Meter):
    """A meter that decides what of a stream passes.

    usage_asked: whether the caller wants the usage chunk. Further arguments as for `Meter`.
    """

    def __init__(self, *, usage_asked: bool, bound: InputBound, limit: int | None, choices: int) -> None:
        super().__init__(bound=bound, limit=limit, choices=choices)
        self._usage_asked = usage_asked
        self._splitter = EventSplitter()
        self.last: bytes | None = None
        """The event that ends the stream, held back; None: it has not come."""
        self.failed = False
        """Whether the provider told of an error in the stream."""

    def feed(self, data: bytes) -> bytes:
        """Takes what came and gives what passes on, after which `last` may be set. Raises EventTooLarge."""
        only = self._splitter.payload_of_one(data)
        if only is not None and only.startswith(b"{"):  # by far the most are like this
            return b"" if self._look(only) else data
        passed = []
        for event in self._splitter.feed(data):
            payload = data_of(event)
            if payload is None:
                passed.append(event)
            elif payload == DONE or payload.strip() == DONE:
                self.last = event
                break
            elif not self._look(payload):
                passed.append(event)
        if len(passed) == 1:
            return passed[0]
        return b"".join(passed)

    def _look(self, payload: bytes) -> bool:
        """Counts a payload; says whether it is the usage chunk that nobody asked for."""
        chunk = read_chunk(payload)
        if chunk is None:
            return False
        self.count(chunk)
        if chunk.error is not None:
            self.failed = True
        return chunk.choices == [] and not self._usage_asked and usage_of(chunk) != b""

    def end(self) -> bytes:
        """Takes the end of the bytes: gives what passes on of an event that no blank line ended, and may set `last`."""
        rest = self._splitter.rest
        payload = data_of(rest) if rest else None
        if payload is None:
            return rest
        if payload.strip() == DONE:
            self.last = rest
            return b""
        return b"" if self._look(payload) else rest
