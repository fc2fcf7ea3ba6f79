"""The rule of admission: whether a call may be made, and how much money is set aside for it. Pure; the ledger applies it.

The hold is an upper bound of the cost, so that a strict budget cannot be exceeded whatever runs at the same time. Where the
bound does not fit, the output limit is lowered rather than the call refused: money that is there is never locked out for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from gateway import usage as units
from gateway.clock import parse_expiry
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


def status(token: TokenState, now: datetime) -> TokenStatus:
    """What the token can do now. An unreadable `expires_at` counts as expired: what cannot be read opens nothing."""
    if not token.enabled:
        return TokenStatus.DISABLED
    if token.expires_at is not None:
        try:
            if now > parse_expiry(token.expires_at):
                return TokenStatus.EXPIRED
        except ValueError:
            return TokenStatus.EXPIRED
    if token.max_amount_nanos is not None and token.period_spent_nanos >= token.max_amount_nanos:
        return TokenStatus.EXHAUSTED
    return TokenStatus.ACTIVE


def admit(token: TokenState, call: Call, candidates: Sequence[PricedCandidate], now: datetime) -> Grant | Refusal:
    """Decides one call. Gives the grant, or the refusal with what is left, held and needed; changes nothing."""
    refusal = judge(token, call.request_model, now)
    if refusal is not None:
        return refusal
    if token.max_amount_nanos is None or not token.strict:
        if token.max_amount_nanos is not None and any(not _is_priced(c, call) for c in candidates):
            return _not_priced(call)
        return Grant(held_nanos=_hold(_limits(call, candidates), call.max_output_tokens), max_output_tokens=None)
    return _admit_strictly(token, token.max_amount_nanos, call, candidates)


def judge(token: TokenState, request_model: str, now: datetime) -> Refusal | None:
    """The part of the decision that needs no price: switch, day, budget spent, model. None: nothing against it."""
    match status(token, now):
        case TokenStatus.DISABLED:
            return TokenDisabled("This token is switched off. Ask whoever gave it to you.")
        case TokenStatus.EXPIRED:
            return TokenExpired(f"This token expired ({token.expires_at}). Ask whoever gave it to you for a new one.")
        case TokenStatus.EXHAUSTED if token.max_amount_nanos is not None:
            return BudgetExhausted(
                f"The budget of this token ({_amount(token.max_amount_nanos)}) is spent. Ask for a top-up.",
                metadata=_figures(token, token.max_amount_nanos),
            )
    if request_model and not matches(request_model, models_of_text(token.allowed_models)):
        return ModelNotAllowed("This token is not for this model. GET /v1/models lists those it is for.")
    return None


@dataclass(frozen=True, slots=True)
class _Limit:
    """One candidate's bound, and the output ceiling up to which it grows."""

    bound: Bound
    ceiling: int


def _admit_strictly(token: TokenState, maximum: int, call: Call, candidates: Sequence[PricedCandidate]) -> Grant | Refusal:
    refusal = _unbounded(call, candidates)
    if refusal is not None:
        return refusal
    limits = _limits(call, candidates)
    stated = call.max_output_tokens
    ceiling = max(limit.ceiling for limit in limits)
    wanted = ceiling if stated is None else min(stated, ceiling)
    must_force = (stated is None and any(c.max_output_tokens is None for c in candidates)) or (
        stated is not None and stated > wanted
    )

    left = maximum - token.period_spent_nanos
    free = left - token.held_nanos
    if (held := _hold(limits, wanted)) <= free:
        return Grant(held, wanted if must_force else None)
    floor = min(wanted, FLOOR_OUTPUT_TOKENS + call.thinking_budget_tokens)
    granted = min(wanted, max(floor, _affordable(limits, free // 4)))
    if (held := _hold(limits, granted)) <= free:
        return Grant(held, granted)

    # Not even the floor fits. With other calls in flight their money may come back; without, this is all there will be.
    least = _hold(limits, min(wanted, LEAST_OUTPUT_TOKENS))
    if least > left:
        return RequestExceedsBudget(
            f"This call may cost {_amount(least)} and {_amount(left)} is left on this token."
            " Make it shorter, or ask for a top-up.",
            metadata=_figures(token, maximum, least),
        )
    if token.held_nanos > 0:
        needed = _hold(limits, floor)
        return BudgetReserved(
            f"{_amount(left)} is left on this token, of which calls in flight hold {_amount(token.held_nanos)};"
            f" this call needs {_amount(min(needed, left))}. Try again when they have ended.",
            retry_after=RETRY_AFTER,
            metadata=_figures(token, maximum, min(needed, left)),
        )
    granted = min(wanted, _affordable(limits, free))
    return Grant(_hold(limits, granted), granted)


def _unbounded(call: Call, candidates: Sequence[PricedCandidate]) -> Refusal | None:
    """Why no upper bound of this call's cost can be given; None: one can."""
    if call.unbounded_features:
        return UnboundedRequest(
            f"The cost of {', '.join(call.unbounded_features)} has no upper bound, and the budget of this token is strict."
            " Leave it out, or ask for a token with a soft budget."
        )
    if any(not _is_priced(candidate, call) for candidate in candidates):
        return _not_priced(call)
    if call.input_unbounded and any(candidate.context_window is None for candidate in candidates):
        return UnboundedRequest(
            "Part of the input lies elsewhere and the model's context window is not known, so its cost has no upper bound."
            " Send the input itself, or ask for a token with a soft budget."
        )
    return None


def _limits(call: Call, candidates: Sequence[PricedCandidate]) -> list[_Limit]:
    limits = []
    for candidate in candidates:
        if candidate.rates is None:
            continue
        input_tokens = call.input_token_ceiling
        if call.input_unbounded and candidate.context_window is not None:
            input_tokens = max(input_tokens, candidate.context_window)
        limits.append(
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
    return limits


def _ceiling(candidate: PricedCandidate, *, stated: int | None) -> int:
    """The most that the model writes for one choice; where nobody knows, a number that is forced into the request."""
    if candidate.max_output_tokens is not None:
        return candidate.max_output_tokens
    if stated is not None:  # the caller's own limit is the bound; the context window caps a hostile one
        return min(stated, candidate.context_window or 1_000_000)
    return min(DEFAULT_OUTPUT_CEILING, (candidate.context_window or 2 * DEFAULT_OUTPUT_CEILING) // 2)


def _hold(limits: Sequence[_Limit], output_limit: int | None) -> int:
    """The dearest candidate's bound for this output limit; None: up to each one's own ceiling."""
    return max(
        (limit.bound.nanos(limit.ceiling if output_limit is None else min(output_limit, limit.ceiling)) for limit in limits),
        default=0,
    )


def _affordable(limits: Sequence[_Limit], nanos: int) -> int:
    """The largest output limit that this money pays at the dearest candidate; 0 where it pays none."""
    affordable = (limit.bound.affordable(nanos) for limit in limits)
    return max(0, min(limit.ceiling if tokens is None else tokens for limit, tokens in zip(limits, affordable, strict=True)))


def _is_priced(candidate: PricedCandidate, call: Call) -> bool:
    rates = candidate.rates
    wanted = (units.INPUT, units.OUTPUT, *call.units, *call.fixed_usage)
    return rates is not None and all(rates.covers(unit) for unit in wanted)


def _not_priced(call: Call) -> ModelNotPriced:
    return ModelNotPriced(
        f"The model {call.request_model!r} has no price, and this token has a budget."
        " An administrator can give it one under [[prices]] in gateway.toml."
    )


def _figures(token: TokenState, maximum: int, needed: int | None = None) -> dict[str, str]:
    figures = {
        "limit": "max_amount",
        "remaining_nanos": str(maximum - token.period_spent_nanos),
        "held_nanos": str(token.held_nanos),
    }
    if needed is not None:
        figures["needed_nanos"] = str(needed)
    return figures


def _amount(nanos: int) -> str:
    return f"{to_units(nanos).normalize():f} {CURRENCY}"
