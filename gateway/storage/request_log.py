"""The request log as administrators read it: pages of calls, one call, and the calls as they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from gateway.clock import from_text, to_text
from gateway.errors import InvalidArgument, NotFound
from gateway.ids import uuid7
from gateway.storage import refusals
from gateway.storage.database import Database
from gateway.storage.refusals import KeptRefusal

STATES = ("admitted", "settled", "released", "expired")

_MAX_SAME_NAME = 100
_OLDEST_ID = timedelta(days=7)  # an id with a time in it is at most this old when its call is admitted
_SKEW = timedelta(days=1)  # and was made by a clock that is at most this far ahead
_USUAL = timedelta(minutes=5)  # nearly every id is made within this of its admission
_HIDE = "|| ''"  # after a text column: keeps its condition from being taken for a walk along an index


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One call. Money in nano-dollars, times in milliseconds; 0 and empty where a thing is not known."""

    request_id: str
    parent_request_id: str
    token_id: int
    token_name: str
    state: str
    endpoint: str
    dialect: str
    stream: bool
    request_model: str
    response_model: str
    provider: str
    admitted_at: datetime
    settled_at: datetime | None
    held_nanos: int
    cost_nanos: int
    price_id: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: str
    status: int
    error_code: str
    ttft_ms: int
    duration_ms: int
    client_ip: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which calls; empty fields let all pass. since, until: admitted at or after, and before."""

    token_id: int = 0
    token_name: str = ""
    model: str = ""
    state: str = ""
    since: datetime | None = None
    until: datetime | None = None


_COLUMNS = """
    r.request_id, r.parent_request_id, r.token_id, t.name, r.state, r.endpoint, r.dialect, r.stream, r.request_model,
    r.response_model, r.provider, r.admitted_at, r.settled_at, r.held_nanos, r.cost_nanos, r.price_id, r.input_tokens,
    r.cached_input_tokens, r.cache_write_tokens, r.output_tokens, r.reasoning_tokens, r.usage_source, r.status, r.error_code,
    r.ttft_ms, r.duration_ms, r.client_ip, r.user_agent
"""
# The token's row stays when a token is deleted, so an inner join loses no call.
_FROM = "FROM requests r JOIN client_tokens t ON t.id = r.token_id"


class RequestLog:
    """Reads `requests`. Every read is short: no transaction is held across a stream."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def page(self, wanted: RequestFilter, *, limit: int, before_id: str = "") -> list[LoggedRequest]:
        """The calls below an id, the newest id first. Raises InvalidArgument for a state that is none."""
        found: dict[str, LoggedRequest] = {}
        # One query a token and kind of id: so each walks an index in the order of the answer and stops at the limit. What two
        # of them find is told once.
        hide = "" if self._db.is_shared else "+"
        for span, token_ids in product(_id_spans(wanted, hide, before_id), self._token_ids(wanted)):
            if span.below and sum(request_id >= span.below for request_id in found) >= limit:
                break
            asked = replace(wanted, since=None, until=None) if span.is_odd else wanted
            where, parameters = _conditions(asked, token_ids, by_their_own_index=span.has_index)
            where += span.where
            parameters += span.bounds
            # Calls that are open are few, and their index is not in the order of ids: hiding keeps the walk over all ids away.
            order = f"r.request_id {_HIDE}" if wanted.state == "admitted" or span.is_odd else "r.request_id"
            if before_id and not span.ends_at_cursor:
                where.append(f"{order} < ?")
                parameters.append(before_id)
            sql = f"SELECT {_COLUMNS} {_FROM} {_where(where)} ORDER BY {order} DESC LIMIT ?"
            found |= {row[0]: _to_request(row) for row in self._db.query(sql, (*parameters, limit))}
        return [found[request_id] for request_id in sorted(found, reverse=True)[:limit]]

    def get(self, request_id: str) -> LoggedRequest:
        """One call. Raises NotFound."""
        sql = f"SELECT {_COLUMNS} {_FROM} WHERE r.request_id = ?"
        rows = self._db.query(sql, (request_id,))
        if not rows:
            raise NotFound(
                "there is no such request: neither a call that was admitted, nor a refusal that was kept (they are written"
                " some seconds later, and of a flood only the first)"
            )
        return _to_request(rows[0])

    def refusal(self, request_id: str) -> KeptRefusal | None:
        """The refusal that was told under an id; None: there is none that was kept."""
        return refusals.find(self._db, request_id)

    def ended(
        self, wanted: RequestFilter, *, after: tuple[str, str], until: datetime, limit: int
    ) -> tuple[list[LoggedRequest], tuple[str, str]]:
        """The calls that ended after a position (time as text, id) and not after `until`, the first to end first.

        Gives the position to go on from too. A call whose provisional end was replaced by a report ends once more.
        """
        found: list[LoggedRequest] = []
        for token_ids in self._token_ids(wanted):
            where, parameters = _conditions(wanted, token_ids, by_their_own_index=True)
            where += ["r.settled_at IS NOT NULL", "(r.settled_at, r.request_id) > (?, ?)", "r.settled_at <= ?"]
            parameters += [*after, to_text(until)]
            sql = f"SELECT {_COLUMNS} {_FROM} {_where(where)} ORDER BY r.settled_at, r.request_id LIMIT ?"
            found.extend(_to_request(row) for row in self._db.query(sql, (*parameters, limit)))
        found.sort(key=_end)
        found = found[:limit]
        if len(found) == limit:
            return found, _end(found[-1])
        return found, max((to_text(until), "g"), after)  # "g" is above every id of that very moment

    def _token_ids(self, wanted: RequestFilter) -> Sequence[tuple[int, ...]]:
        """The tokens that the filter names, each for a query of its own; one empty tuple when it names none."""
        if not wanted.token_name:
            return [(wanted.token_id,)] if wanted.token_id else [()]
        rows = self._db.query("SELECT id FROM client_tokens WHERE name = ? LIMIT ?", (wanted.token_name, _MAX_SAME_NAME + 1))
        ids = {int(row[0]) for row in rows}
        if len(ids) > _MAX_SAME_NAME:
            raise InvalidArgument(f"more than {_MAX_SAME_NAME} tokens have this name: give token_id instead")
        if wanted.token_id:
            ids &= {wanted.token_id}
        return [(token_id,) for token_id in sorted(ids)]


def _conditions(
    wanted: RequestFilter, token_ids: tuple[int, ...], *, by_their_own_index: bool = False
) -> tuple[list[str], list[Any]]:
    """What a call must be, as conditions and their parameters.

    by_their_own_index: other conditions find the calls, by an index in which neither token nor model is.
    """
    where: list[str] = []
    parameters: list[Any] = []
    # Hiding keeps longer walks away: calls that are open are few, and a token's calls that were released or expired are fewer
    # than its calls to a model. Where an index is over an expression with `|| ''`, it is the one that is meant.
    few = wanted.state not in {"", "settled"}
    neither = by_their_own_index or wanted.state == "admitted"
    for token_id in token_ids:
        where.append("r.token_id + 0 = ?" if neither else "r.token_id = ?")
        parameters.append(token_id)
    if wanted.model:
        if neither or (token_ids and few):
            where.append("'' || r.request_model = ?")
        else:
            where.append("r.request_model || '' = ?" if token_ids else "r.request_model = ?")
        parameters.append(wanted.model)
    if wanted.state:
        if wanted.state not in STATES:
            raise InvalidArgument(f"state is one of {', '.join(STATES)}", metadata={"param": "state"})
        narrow = few and not neither and (token_ids or wanted.model)
        state = "'' || r.state" if by_their_own_index else "r.state || ''" if narrow else "r.state"
        where.append(f"{state} = '{wanted.state}'")  # spelled out: a partial index is not used for a parameter
    if wanted.since is not None:
        where.append(f"r.admitted_at {_HIDE} >= ?")
        parameters.append(to_text(wanted.since))
    if wanted.until is not None:
        where.append(f"r.admitted_at {_HIDE} < ?")
        parameters.append(to_text(wanted.until))
    return where, parameters


@dataclass(frozen=True, slots=True)
class _Span:
    """Where ids can lie, as conditions with their parameters."""

    where: list[str]
    bounds: list[str]
    has_index: bool = False
    """An index finds the calls of this span by themselves."""
    is_odd: bool = False
    """Its ids were made long before their calls, or by a clock that is ahead: they are few, and its bounds say the moments."""
    ends_at_cursor: bool = False
    """No other condition is needed for the position in the list."""
    below: str = ""
    """All its ids are below this one, and those of the other spans are not but for ids without a time; empty: not so."""


def _id_spans(wanted: RequestFilter, hide: str, before_id: str) -> list[_Span]:
    """Where the ids of the calls can lie, when moments are asked for.

    Nearly all ids were made at the moment of admission. Those that were made by a clock that is ahead, or long before, are
    found by the moment itself, and those that have no time in them by an index of their own. hide: what keeps a
    column from being taken for a walk along an index; empty where the database chooses well by itself.
    """
    since, until = wanted.since, wanted.until
    if (since is None and until is None) or wanted.state == "admitted":
        return [_Span([], [])]
    spans = [_Span(["substr(r.request_id, 15, 1) <> '7'"], [], has_index=True)]
    usual = _Span([], [])
    if until is not None:
        above = _id_at(until, _USUAL)
        begins = _shifted(until, -_SKEW) if since is None else max(since, _shifted(until, -_SKEW))
        spans.append(_found_by_moment(begins, until, f"{hide}odd.request_id >= ?", above))
        # One upper bound: of two, SQLite begins its walk at the first, however far that is from the other.
        usual = _Span(["r.request_id < ?"], [min(above, before_id or above)], ends_at_cursor=True)
    spans.append(usual)
    if since is not None:
        below = _id_at(since, -_USUAL)
        usual.where.append("r.request_id >= ?")
        usual.bounds.append(below)
        ends = _shifted(since, _OLDEST_ID) if until is None else min(until, _shifted(since, _OLDEST_ID))
        spans.append(replace(_found_by_moment(since, ends, f"{hide}odd.request_id < ?", below), below=below))
    return spans


def _found_by_moment(begins: datetime, ends: datetime, condition: str, bound: str) -> _Span:
    """The calls admitted in between whose ids meet a condition. It may read a week of an index, and nothing but the index."""
    inside = f"SELECT odd.request_id FROM requests odd WHERE odd.admitted_at >= ? AND odd.admitted_at < ? AND {condition}"
    bounds = [to_text(begins), to_text(ends), bound]
    return _Span([f"r.request_id IN ({inside})"], bounds, has_index=True, is_odd=True)


def _shifted(moment: datetime, span: timedelta) -> datetime:
    try:
        return moment + span
    except OverflowError:
        return moment


def _id_at(moment: datetime, shift: timedelta) -> str:
    """The start of all ids made so long before or after this moment: ids of version 7 sort by time."""
    milliseconds = int((moment.timestamp() + shift.total_seconds()) * 1000)
    return uuid7(min(max(milliseconds, 0), (1 << 48) - 1))[:13]


def _where(conditions: list[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def _end(request: LoggedRequest) -> tuple[str, str]:
    return ("" if request.settled_at is None else to_text(request.settled_at), request.request_id)


def _to_request(row: tuple[Any, ...]) -> LoggedRequest:
    return LoggedRequest(
        request_id=row[0],
        parent_request_id=row[1] or "",
        token_id=row[2],
        token_name=row[3] or f"token-{row[2]}",
        state=row[4],
        endpoint=row[5],
        dialect=row[6],
        stream=bool(row[7]),
        request_model=row[8],
        response_model=row[9],
        provider=row[10],
        admitted_at=from_text(row[11]),
        settled_at=None if row[12] is None else from_text(row[12]),
        held_nanos=row[13],
        cost_nanos=row[14],
        price_id=row[15] or 0,
        input_tokens=row[16],
        cached_input_tokens=row[17],
        cache_write_tokens=row[18],
        output_tokens=row[19],
        reasoning_tokens=row[20],
        usage_source=row[21] or "",
        status=row[22],
        error_code=row[23],
        ttft_ms=row[24],
        duration_ms=row[25],
        client_ip=row[26],
        user_agent=row[27],
    )
