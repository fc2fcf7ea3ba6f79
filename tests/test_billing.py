"""docs/billing.md tells each way in which a call can end, and no other: its table is held against the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from gateway import errors, usage
from gateway.client import call as client_call
from gateway.ids import uuid7
from gateway.pricing import Rates
from gateway.settlement import charge
from gateway.usage import Outcome, Report, Source, State
from services.auth import wire

REPOSITORY = Path(__file__).resolve().parents[1]
FREE = {"none", "as the call ended", "its own words"}
"""What stands for a code in the table and is none."""
RATES = Rates.from_json('{"input": "1", "output": "1"}')


def rows() -> list[list[str]]:
    """The cells of the table: what happened, codes, state, source, charged, why."""
    text = (REPOSITORY / "docs" / "billing.md").read_text()
    section = text.partition("## Each way a call can end")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def documented_codes() -> set[str]:
    codes = {code.strip().strip("`") for row in rows() for code in row[1].split(",")}
    return codes - FREE


def texts_of(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be, as far as they stand in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple):
        for part in node.elts:
            yield from texts_of(part)


def codes_in(path: Path) -> Iterator[str]:
    """What a file sets as `error_code`, whichever way."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                places = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(places)
                for place, value in zip(places, values, strict=False):
                    name = place.attr if isinstance(place, ast.Attribute) else getattr(place, "id", "")
                    if name == "error_code" or name == "PROXY_DIED":
                        yield from texts_of(value)
        elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in {"error_code", "PROXY_DIED"} and node.value:
            yield from texts_of(node.value)
        elif isinstance(node, ast.Call):
            yield from (text for word in node.keywords if word.arg == "error_code" for text in texts_of(word.value))
            if isinstance(node.func, ast.Attribute) and node.func.attr == "failed" and node.args:
                yield from texts_of(node.args[0])
            told = getattr(node.func, "id", "")
            if told.startswith("Upstream") and issubclass(getattr(errors, told, int), errors.GatewayError):
                yield getattr(errors, told).reason.lower()


def codes_of_the_code() -> set[str]:
    found = {code for path in (REPOSITORY / "services" / "proxy").rglob("*.py") for code in codes_in(path)}
    ledger = "".join(path.read_text() for path in (REPOSITORY / "gateway" / "storage").glob("*.py"))
    found |= set(re.findall(r"error_code = '(\w+)'", ledger))
    found.add(client_call._NOT_REPORTED)
    return found - {""}


def endings() -> set[tuple[str, str]]:
    """State and source of every charge that a report which auth takes in can lead to, and of an expiry."""
    usages = ({"input": 1, "output": 1}, {"input": -1}, {"output": 2 * usage.MAX_COUNT}, {"unheard_of": 1}, {"input": 10**9})
    found = {(State.EXPIRED.value, Source.ESTIMATED.value)}
    taken = [Source(value) for value in sources_taken_in()]
    for outcome, source, counts, held, rates in product(Outcome, taken, usages, (0, 1, 10**9), (None, RATES)):
        ended = charge(Report(uuid7(), outcome, "proxy", usage=counts, source=source), held_nanos=held, rates=rates)
        found.add((ended.state.value, ended.source.value))
    return found


def sources_taken_in() -> set[str]:
    """The sources with which a served call can be reported."""
    return {source.value for source in wire._SOURCES.values()}


def test_the_table_names_each_error_code_and_no_other():
    status = "upstream_<status>"  # `told_code`: the provider's own status
    assert codes_of_the_code() == documented_codes() - {status}
    assert status in documented_codes()
    assert 'f"upstream_{' in (REPOSITORY / "services" / "proxy" / "attempts.py").read_text()


def test_the_table_has_each_ending_and_no_other():
    told = {(row[2].strip("`"), row[3].strip("`")) for row in rows()}
    assert told == endings()


def test_every_state_and_source_is_told():
    text = (REPOSITORY / "docs" / "billing.md").read_text()
    assert [word for word in (*State, *Source) if f"`{word}`" not in text] == []


def test_each_row_is_whole():
    for row in rows():
        assert len(row) == 6, row
        assert all(row), row
        free = row[4] == "nothing"
        assert free == (row[2] == "`released`"), row
