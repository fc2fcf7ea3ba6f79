"""The rule of admission: whether a call may be made, and how much money is set aside for it. Pure; the ledger applies it.

The hold is an upper bound of the cost, so that a strict budget cannot be exceeded whatever runs at the same time. Where the
bound does not fit, the output limit is lowered rather than the call refused: money that is there is never locked out for good.

The rules are one list, `RULES`. Admission walks it to the first refusal, `gateway/explain.py` to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from gateway import limits
from gateway import usage as units
from gateway.clock import parse_expiry, to_text
from gateway.errors import (
    BudgetExhausted,
    BudgetReserved,
    ModelNotAllowed,
    ModelNotPriced,
    Refusal,
    RequestExceedsBudget,
    TokenDisabled,
    TokenExpired,
    UnboundedRequest,
)
from gateway.limits import Period, Window, check_address, enter_minute, period_end, rolled
from gateway.money import CURRENCY, to_units
from gateway.patterns import matches, models_of_text
from gateway.pricing import Bound, Rates, bound

FLOOR_OUTPUT_TOKENS = 1024  # less than this is no useful answer, so rather wait for money than grant it
LEAST_OUTPUT_TOKENS = 16  # less than this is no answer at all
DEFAULT_OUTPUT_CEILING = 4096  # for a model whose own ceiling nobody knows
RETRY_AFTER = 1.0  # seconds until money that is held may be back


class TokenStatus(StrEnum):
    """What a token can do at a moment."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"


@dataclass(slots=True)
class TokenState:
    """What admission reads of a token. Money in nano-dollars."""

    id: int
    enabled: bool
    expires_at: str | None
    """ISO text as the database has it; a date alone means through that day, UTC."""
    allowed_models: str | None
    """Comma-separated patterns; None or empty: all."""
    max_amount_nanos: int | None
    strict: bool
    period_spent_nanos: int
    held_nanos: int
    budget_period: str = Period.TOTAL
    period_start: str | None = None
    """When the period began that `period_spent_nanos` is of, as the database's text; None: the budget has no periods."""
    allowed_ips: str | None = None
    """Comma-separated addresses and networks; None or empty: all."""
    window: Window = field(default_factory=Window)

    def roll(self, now: datetime) -> None:
        """Enters the budget period and the minute that `now` lies in, if they are new."""
        self.period_start, self.period_spent_nanos = rolled(self.budget_period, self.period_start, self.period_spent_nanos, now)
        enter_minute(self.window, now)


@dataclass(frozen=True, slots=True)
class Call:
    """What wants to be done."""

    request_model: str
    """The name that the caller used; empty: only the token is judged."""
    input_token_ceiling: int = 0
    max_output_tokens: int | None = None
    choices: int = 1
    thinking_budget_tokens: int = 0
    input_unbounded: bool = False
    unbounded_features: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    fixed_usage: Mapping[str, int] = field(default_factory=dict)
    client_ip: str = ""


@dataclass(frozen=True, slots=True)
class PricedCandidate:
    """A place where the call may go, with what is known of the model there. `rates` None: no price."""

    provider: str
    model: str
    price_id: int = 0
    rates: Rates | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Yes: this much is held, and this output limit must be put into the request (None: it goes as it is)."""

    held_nanos: int
    max_output_tokens: int | None


Check = Callable[[TokenState, Call, Sequence[PricedCandidate], datetime], Refusal | None]
"""One rule: a token in the period and minute of a moment, a call, where it may go, and the moment."""


def status(token: TokenState, now: datetime) -> TokenStatus:
    """What the token can do now. An unreadable `expires_at` counts as expired: what cannot be read opens nothing."""
    if not token.enabled:
        return TokenStatus.DISABLED
    if token.expires_at is not None and _is_over(token.expires_at, now):
        return TokenStatus.EXPIRED
    if token.max_amount_nanos is not None and token.period_spent_nanos >= token.max_amount_nanos:
        return TokenStatus.EXHAUSTED
    return TokenStatus.ACTIVE


def _is_over(expires_at: str, now: datetime) -> bool:
    try:
        return now > parse_expiry(expires_at)
    except ValueError:
        return True


def admit(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Grant | Refusal:
    """Decides one call. Gives the grant, or the refusal with what is left, held and needed; changes nothing.

    token: in the period and the minute of `now` (`roll`).
    """
    for check in _CHECKS:
        refusal = check(token, call, candidates, now)
        if refusal is not None:
            return refusal
    return set_aside(token, call, candidates, now)


def judge(token: TokenState, call: Call, now: datetime) -> Refusal | None:
    """The part of the decision that needs no price: switch, day, address, budget spent, model. None: nothing against it."""
    for check in _CHECKS_OF_TOKEN:
        refusal = check(token, call, (), now)
        if refusal is not None:
            return refusal
    return None


# -- the rules, in the order of `RULES`. Each gives its refusal, or None where it has nothing against the call. --------------


def _enabled(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if token.enabled:
        return None
    return TokenDisabled("This token is switched off. Ask whoever gave it to you.")


def _not_expired(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if token.expires_at is None or not _is_over(token.expires_at, now):
        return None
    return TokenExpired(f"This token expired ({token.expires_at}). Ask whoever gave it to you for a new one.")


def _address_allowed(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    return check_address(token.allowed_ips, call.client_ip) if token.allowed_ips else None


def _budget_left(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    maximum = token.max_amount_nanos
    if maximum is None or token.period_spent_nanos < maximum:
        return None
    figures, ends = _figures(token, maximum), period_end(token.budget_period, now)
    spent = f"The {'' if ends is None else f'{token.budget_period} '}budget of this token ({amount(maximum)}) is spent."
    if ends is None:
        return BudgetExhausted(f"{spent} Ask for a top-up.", metadata=figures)
    return BudgetExhausted(
        f"{spent} It starts anew on {ends:%Y-%m-%d} at 00:00 UTC. Wait, or ask for a top-up.",
        metadata={**figures, "resets_at": to_text(ends)},
    )


def _model_allowed(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if not token.allowed_models or not call.request_model:
        return None
    if matches(call.request_model, models_of_text(token.allowed_models)):
        return None
    return ModelNotAllowed("This token is not for this model. GET /v1/models lists those it is for.")


def _in_parallel(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    return limits.check_parallel(token.window)


def _requests(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    return limits.check_requests(token.window, now)


def _tokens(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    return limits.check_tokens(token.window, now)


def _features_bounded(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if not call.unbounded_features or not _is_strict(token):
        return None
    return UnboundedRequest(
        f"The cost of {', '.join(call.unbounded_features)} has no upper bound, and the budget of this token is strict."
        " Leave it out, or ask for a token with a soft budget."
    )


def _priced(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if token.max_amount_nanos is None:
        return None
    for candidate in candidates:
        if not is_priced(candidate, call):
            return ModelNotPriced(
                f"The model {call.request_model!r} has no price, and this token has a budget."
                " An administrator can give it one under [[prices]] in gateway.toml."
            )
    return None


def _input_bounded(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Refusal | None:
    if not call.input_unbounded or not _is_strict(token):
        return None
    if all(candidate.context_window is not None for candidate in candidates):
        return None
    return UnboundedRequest(
        "Part of the input lies elsewhere and the model's context window is not known, so its cost has no upper bound."
        " Send the input itself, or ask for a token with a soft budget."
    )


_OF_TOKEN: Final[tuple[tuple[str, Check], ...]] = (
    ("enabled", _enabled),
    ("not_expired", _not_expired),
    ("address_allowed", _address_allowed),
    ("budget_left", _budget_left),
    ("model_allowed", _model_allowed),
)
RULES: Final[tuple[tuple[str, Check], ...]] = (
    *_OF_TOKEN,
    ("max_parallel_requests", _in_parallel),
    ("requests_per_minute", _requests),
    ("tokens_per_minute", _tokens),
    ("features_bounded", _features_bounded),
    ("priced", _priced),
    ("input_bounded", _input_bounded),
)
"""Every rule that can refuse a call before its hold is computed, in the order in which they are judged. `set_aside` is last."""
LAST_RULE: Final = "budget_fits"
"""The name of what `set_aside` decides."""
_CHECKS: Final = tuple(check for _, check in RULES)
_CHECKS_OF_TOKEN: Final = tuple(check for _, check in _OF_TOKEN)


# -- the last rule: whether the hold fits, and what the grant is ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Limit:
    """One candidate's bound, and the output ceiling up to which it grows."""

    bound: Bound
    ceiling: int


def set_aside(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Grant | Refusal:
    """The grant of a call that every rule lets pass, or the refusal where its bound does not fit into a strict budget."""
    bounds = _limits(call, candidates)
    maximum = token.max_amount_nanos
    if maximum is None or not token.strict:
        return Grant(_hold(bounds, call.max_output_tokens), None)
    stated = call.max_output_tokens
    ceiling = max([limit.ceiling for limit in bounds])
    wanted = ceiling if stated is None else min(stated, ceiling)
    must_force = (stated is None and any(c.max_output_tokens is None for c in candidates)) or (
        stated is not None and stated > wanted
    )

    left = maximum - token.period_spent_nanos
    free = left - token.held_nanos
    if (held := _hold(bounds, wanted)) <= free:
        return Grant(held, wanted if must_force else None)
    floor = min(wanted, FLOOR_OUTPUT_TOKENS + call.thinking_budget_tokens)
    granted = min(wanted, max(floor, _affordable(bounds, free // 4)))
    if (held := _hold(bounds, granted)) <= free:
        return Grant(held, granted)

    # Not even the floor fits. With other calls in flight their money may come back; without, this is all there will be.
    least = _hold(bounds, min(wanted, LEAST_OUTPUT_TOKENS))
    if least > left:
        return RequestExceedsBudget(
            f"This call may cost {amount(least)} and {amount(left)} is left on this token."
            " Make it shorter, or ask for a top-up.",
            metadata=_figures(token, maximum, least) | _reset(token, now),
        )
    if token.held_nanos > 0:
        needed = min(_hold(bounds, floor), left)
        return BudgetReserved(
            f"{amount(left)} is left on this token, of which calls in flight hold {amount(token.held_nanos)};"
            f" this call needs {amount(needed)}. Try again when they have ended.",
            retry_after=RETRY_AFTER,
            metadata=_figures(token, maximum, needed) | _reset(token, now),
        )
    granted = min(wanted, _affordable(bounds, free))
    return Grant(_hold(bounds, granted), granted)


def hold_of(candidate: PricedCandidate, call: Call, output_limit: int | None) -> int:
    """What one candidate alone would have held, in nano-dollars; 0 without a price. None: up to its own ceiling."""
    return _hold(_limits(call, [candidate]), output_limit)


def is_priced(candidate: PricedCandidate, call: Call) -> bool:
    """Whether every unit that the call can trigger there has a rate."""
    rates = candidate.rates
    if rates is None or not (rates.covers(units.INPUT) and rates.covers(units.OUTPUT)):
        return False
    if not call.units and not call.fixed_usage:
        return True
    return all(rates.covers(unit) for unit in (*call.units, *call.fixed_usage))


def _is_strict(token: TokenState) -> bool:
    return token.strict and token.max_amount_nanos is not None


def _limits(call: Call, candidates: Sequence[PricedCandidate]) -> list[_Limit]:
    found = []
    for candidate in candidates:
        if candidate.rates is None:
            continue
        input_tokens = call.input_token_ceiling
        if call.input_unbounded and candidate.context_window is not None:
            input_tokens = max(input_tokens, candidate.context_window)
        found.append(
            _Limit(
                bound(
                    candidate.rates,
                    input_tokens=input_tokens,
                    choices=call.choices,
                    extra_units=call.units,
                    fixed=call.fixed_usage,
                ),
                _ceiling(candidate, stated=call.max_output_tokens),
            )
        )
    return found


def _ceiling(candidate: PricedCandidate, *, stated: int | None) -> int:
    """The most that the model writes for one choice; where nobody knows, a number that is forced into the request."""
    if candidate.max_output_tokens is not None:
        return candidate.max_output_tokens
    if stated is not None:  # the caller's own limit is the bound; the context window caps a hostile one
        return min(stated, candidate.context_window or 1_000_000)
    return min(DEFAULT_OUTPUT_CEILING, (candidate.context_window or 2 * DEFAULT_OUTPUT_CEILING) // 2)


def _hold(bounds: Sequence[_Limit], output_limit: int | None) -> int:
    """The dearest candidate's bound for this output limit; None: up to each one's own ceiling."""
    held = 0
    for limit in bounds:
        ceiling = limit.ceiling
        nanos = limit.bound.nanos(ceiling if output_limit is None or output_limit > ceiling else output_limit)
        held = max(held, nanos)
    return held


def _affordable(bounds: Sequence[_Limit], nanos: int) -> int:
    """The largest output limit that this money pays at the dearest candidate; 0 where it pays none."""
    affordable = (limit.bound.affordable(nanos) for limit in bounds)
    return max(0, min(limit.ceiling if tokens is None else tokens for limit, tokens in zip(bounds, affordable, strict=True)))


def _figures(token: TokenState, maximum: int, needed: int | None = None) -> dict[str, str]:
    figures = {
        "limit": limits.BUDGET,
        "remaining_nanos": str(maximum - token.period_spent_nanos),
        "held_nanos": str(token.held_nanos),
    }
    if needed is not None:
        figures["needed_nanos"] = str(needed)
    return figures


def _reset(token: TokenState, now: datetime) -> dict[str, str]:
    ends = period_end(token.budget_period, now)
    return {} if ends is None else {"resets_at": to_text(ends)}


def amount(nanos: int) -> str:
    """Money as messages tell it."""
    return f"{to_units(nanos).normalize():f} {CURRENCY}"
