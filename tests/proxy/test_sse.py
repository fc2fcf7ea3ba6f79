"""Server-sent events: the same whatever the cuts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.sse import MAX_EVENT, EventSplitter, EventTooLarge, data_of

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes | None]]:
    """A stream and what its events carry."""
    stream, carried = b"", []
    end = draw(ENDS)
    for _ in range(draw(st.integers(0, 5))):
        lines, data = [], []
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["data", "comment", "event"]))
            text = draw(TEXTS).encode()
            if kind == "data":
                lines.append(b"data: " + text)
                data.append(text)
            elif kind == "comment":
                lines.append(b":" + text)
            else:
                lines.append(b"event: x")
        stream += end.join(lines) + end + end
        carried.append(b"\n".join(data) if data else None)
    return stream, carried


@given(streams(), st.lists(st.integers(0, 400), max_size=12))
def test_however_a_stream_is_cut_its_events_are_the_same(stream: tuple[bytes, list[bytes | None]], cuts: list[int]) -> None:
    raw, carried = stream
    splitter = EventSplitter()
    events = []
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    for start, end in itertools.pairwise(places):
        events += splitter.feed(raw[start:end])
    assert b"".join(events) + splitter.rest == raw
    assert [data_of(event) for event in events if event.strip(b"\r\n")] == carried


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_cut_of_a_stream_in_two_gives_the_same_events(end: bytes) -> None:
    raw = end.join([b"data: h\xc3\xa9", b"data: \xe6\x97\xa5", b"", b": note", b"", b"data: [DONE]", b"", b""])
    for cut in range(len(raw) + 1):
        splitter = EventSplitter()
        events = splitter.feed(raw[:cut]) + splitter.feed(raw[cut:])
        assert b"".join(events) + splitter.rest == raw
        carried = [data_of(event) for event in events if event.strip(b"\r\n")]
        assert carried == [b"h\xc3\xa9\n\xe6\x97\xa5", None, b"[DONE]"]


@pytest.mark.parametrize(
    ("event", "carried"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data\n\n", b""),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b"event: message\ndata: a\ndata: b\nid: 1\n\n", b"a\nb"),
        (b": comment\n\n", None),
        (b"\n\n", None),
        (b"datax: 1\n\n", None),
    ],
)
def test_an_event_carries_its_data_lines(event: bytes, carried: bytes | None) -> None:
    assert data_of(event) == carried


def test_an_event_of_sixteen_megabytes_passes_in_pieces_and_a_larger_one_does_not() -> None:
    splitter = EventSplitter()
    piece = b"x" * 65_536
    splitter.feed(b"data: ")
    for _ in range(MAX_EVENT // 65_536 - 1):
        assert splitter.feed(piece) == []
    assert len(splitter.feed(b"\n\n")[0]) == MAX_EVENT - 65_536 + 8
    splitter = EventSplitter()
    with pytest.raises(EventTooLarge):
        for _ in range(MAX_EVENT // 65_536 + 2):
            splitter.feed(piece)
