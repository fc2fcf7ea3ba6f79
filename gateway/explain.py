"""Why a call would be granted or refused: every rule of admission, with its limit and its value now. Pure.

The rules are those of `gateway/quota.py`, which decides for real; here is only how each is told to people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from gateway.clock import to_text
from gateway.errors import Refusal
from gateway.limits import Period, period_end
from gateway.quota import (
    LAST_RULE,
    RULES,
    Call,
    Grant,
    PricedCandidate,
    TokenState,
    amount,
    hold_of,
    is_priced,
    set_aside,
)

TOKEN_KNOWN: Final = "token_known"  # noqa: S105 - the name of a rule
"""The rule before all others, which whoever looks the token up judges."""
_NEEDED: Final = frozenset({"features_bounded", "priced", "input_bounded"})
"""Without these no hold can be computed."""
_NONE: Final = "none"


class Verdict(StrEnum):
    """What one rule says of a call."""

    PASS = "pass"  # noqa: S105 - a verdict
    REFUSE = "refuse"
    WOULD_REFUSE = "would_refuse"
    """An earlier rule refuses it already."""
    NOT_COMPUTED = "not_computed"
    """An earlier rule refuses for want of a price or a bound, without which this one has no figures."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One rule. limit: what is set; value: what stands against it now; both for people."""

    rule: str
    verdict: Verdict
    limit: str
    value: str
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and every rule in the order in which they are judged."""

    decision: Grant | Refusal
    rules: tuple[Judged, ...]
    holds: tuple[int, ...]
    """What each candidate alone would hold, in nano-dollars: at the output limit granted, or else at the one asked for."""


def explain(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Explanation:
    """Decides a call as `quota.admit` does, and judges the rules that this does not come to as well.

    token: in the period and the minute of `now` (`roll`). Changes nothing.
    """
    first: Refusal | None = None
    computable = True
    judged = [Judged(TOKEN_KNOWN, Verdict.PASS, _NONE, f"token {token.id}")]
    for name, check in RULES:
        refusal = check(token, call, candidates, now)
        judged.append(Judged(name, _verdict(refusal, first), *_TOLD[name](token, call, candidates, now), refusal))
        if refusal is not None:
            first = refusal if first is None else first
            computable = computable and name not in _NEEDED
    decision: Grant | Refusal
    if first is not None and not computable:
        judged.append(Judged(LAST_RULE, Verdict.NOT_COMPUTED, _budget(token), _money(token)))
        decision = first
    else:
        last = set_aside(token, call, candidates, now)
        if isinstance(last, Refusal):
            refusal, needed = last, int(last.metadata["needed_nanos"])
        else:
            refusal, needed = None, last.held_nanos
        value = f"{_money(token)}, needs {amount(needed)}"
        judged.append(Judged(LAST_RULE, _verdict(refusal, first), _budget(token), value, refusal))
        decision = last if first is None else first
    granted = decision.max_output_tokens if isinstance(decision, Grant) else None
    limit = call.max_output_tokens if granted is None else granted
    return Explanation(decision, tuple(judged), tuple(hold_of(candidate, call, limit) for candidate in candidates))


def explain_unknown(refusal: Refusal, call: Call, candidates: Sequence[PricedCandidate]) -> Explanation:
    """What is to be said where there is no token: one rule, as none of the others has anything to look at."""
    judged = Judged(TOKEN_KNOWN, Verdict.REFUSE, _NONE, "no live token has this secret", refusal)
    holds = tuple(hold_of(candidate, call, call.max_output_tokens) for candidate in candidates)
    return Explanation(refusal, (judged,), holds)


def _verdict(refusal: Refusal | None, first: Refusal | None) -> Verdict:
    if refusal is None:
        return Verdict.PASS
    return Verdict.REFUSE if first is None else Verdict.WOULD_REFUSE


# -- how each rule is told: its limit, and its value now ----------------------------------------------------------------------

_Told = tuple[str, str]


def _enabled(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return _NONE, "on" if token.enabled else "off"


def _not_expired(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return token.expires_at or _NONE, f"now {to_text(now)}"


def _address_allowed(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return token.allowed_ips or _NONE, call.client_ip or "address not known"


def _budget_left(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    spent = f"{amount(token.period_spent_nanos)} spent"
    ends = period_end(token.budget_period, now)
    return _budget(token), spent if ends is None else f"{spent} since {token.period_start}, starts anew {to_text(ends)}"


def _model_allowed(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return token.allowed_models or _NONE, call.request_model


def _parallel(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return _counted(token.window.max_parallel_requests, token.window.open_calls, "open")


def _requests(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    window = token.window
    return _counted(window.requests_per_minute, window.window_requests, f"since {window.window_start}")


def _tokens(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    window = token.window
    return _counted(window.tokens_per_minute, window.window_tokens, f"since {window.window_start}")


def _features_bounded(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    return _mode(token), ", ".join(call.unbounded_features) or "nothing without an upper bound"


def _priced(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    missing = [_place(candidate) for candidate in candidates if not is_priced(candidate, call)]
    if missing:
        return _mode(token), f"no price for {', '.join(missing)}"
    return _mode(token), f"price {', '.join(str(candidate.price_id) for candidate in candidates)}"


def _input_bounded(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> _Told:
    if not call.input_unbounded:
        return _mode(token), f"at most {call.input_token_ceiling} tokens"
    windows = ", ".join(f"{_place(c)} {c.context_window or 'not known'}" for c in candidates)
    return _mode(token), f"part lies elsewhere; context windows: {windows}"


_TOLD: Final[Mapping[str, Callable[[TokenState, Call, Sequence[PricedCandidate], datetime], _Told]]] = {
    "enabled": _enabled,
    "not_expired": _not_expired,
    "address_allowed": _address_allowed,
    "budget_left": _budget_left,
    "model_allowed": _model_allowed,
    "max_parallel_requests": _parallel,
    "requests_per_minute": _requests,
    "tokens_per_minute": _tokens,
    "features_bounded": _features_bounded,
    "priced": _priced,
    "input_bounded": _input_bounded,
}


def _counted(most: int | None, used: int, what: str) -> _Told:
    return (_NONE, f"{used} {what}") if most is None else (str(most), f"{used} of {most} {what}")


def _budget(token: TokenState) -> str:
    if token.max_amount_nanos is None:
        return _NONE
    period = "" if token.budget_period == Period.TOTAL else f" {token.budget_period}"
    return f"{amount(token.max_amount_nanos)}{period}, {'strict' if token.strict else 'soft'}"


def _mode(token: TokenState) -> str:
    if token.max_amount_nanos is None:
        return _NONE
    return "strict budget" if token.strict else "soft budget"


def _money(token: TokenState) -> str:
    left = (
        "no budget" if token.max_amount_nanos is None else f"left {amount(token.max_amount_nanos - token.period_spent_nanos)}"
    )
    return f"{left}, held {amount(token.held_nanos)}"


def _place(candidate: PricedCandidate) -> str:
    return f"{candidate.model} at {candidate.provider or 'whoever makes it'}"
