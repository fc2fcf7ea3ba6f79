"""Money: integers of nano-dollars inside, decimal currency units for people. The one place where they meet."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

CURRENCY = "USD"
NANOS = 1_000_000_000
MAX_NANOS = 9_000_000_000 * NANOS  # below 2**63 with room for sums


def to_nanos(amount: Decimal | float | str) -> int:
    """Nano-dollars from currency units as a person or a JSON number gives them.

    A float is read as its shortest decimal text, so 0.1 is a tenth. Raises ValueError on what is not a finite number of 0 or
    more, has more than nine decimals, or is above nine billion.
    """
    if isinstance(amount, bool):
        raise ValueError("an amount is a number such as 12.5")  # noqa: TRY004 - callers catch one kind of error
    try:
        units = Decimal(repr(amount)) if isinstance(amount, float) else Decimal(amount)
    except InvalidOperation:
        raise ValueError("an amount is a number such as 12.5") from None
    if not units.is_finite():
        raise ValueError("an amount is a finite number")
    if units < 0:
        raise ValueError("an amount is 0 or more")
    if units > MAX_NANOS // NANOS:
        raise ValueError("an amount is at most 9000000000")
    nanos = units * NANOS
    if nanos != nanos.to_integral_value():
        raise ValueError("an amount has at most nine decimals")
    return int(nanos)


def signed_nanos(amount: Decimal | float | str) -> int:
    """Nano-dollars from currency units that may be below 0, as a correction is. Raises ValueError as `to_nanos` does."""
    text = repr(amount) if isinstance(amount, float) else str(amount)
    nanos = to_nanos(amount if isinstance(amount, bool) else text.strip().removeprefix("-"))
    return -nanos if text.strip().startswith("-") else nanos


def to_units(nanos: int) -> Decimal:
    """Currency units, exact, from nano-dollars."""
    return Decimal(nanos) / NANOS


def to_json_number(nanos: int) -> float:
    """Currency units as the JSON number whose text people expect (12500000000 gives 12.5).

    A double holds every amount up to nine million dollars to the nano-dollar; beyond that the text is rounded.
    """
    return float(to_units(nanos))
