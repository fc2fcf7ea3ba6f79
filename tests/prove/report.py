"""The report of a proof: each row with what was done, what was expected and every figure, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tests.prove.register import ROWS

Record = dict[str, Any]
_VERDICTS = {"passed": "holds", "failed": "**DOES NOT HOLD**", "skipped": "not run here"}


def read(path: Path) -> list[Record]:
    """What the tests wrote down, in the order in which they ran."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table_of_rows() -> str:
    """What is done and expected in each row."""
    lines = ["| row | threat | done | expected | databases |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        lines.append(f"| {name} | {row.threat} | {row.done} | {row.expected} | {', '.join(row.databases)} |")
    return "\n".join(lines)


def missing(records: Iterable[Record], wanted: Collection[str], databases: Collection[str]) -> list[str]:
    """The rows that no test has run at all, of those that have one of these databases."""
    run = {record["row"] for record in records}
    return [row for row in wanted if row not in run and set(ROWS[row].databases) & set(databases)]


def failed(records: Iterable[Record]) -> list[Record]:
    """The tests in which something did not hold."""
    return [record for record in records if record["outcome"] == "failed"]


def render(records: list[Record], *, heading: str, unproven: Collection[str] = ()) -> str:
    """The report as text."""
    lines = [f"# {heading}", "", *_summary(records), ""]
    for row in ROWS:
        own = [record for record in records if record["row"] == row]
        if own:
            lines += _of_row(row, own)
    lines += [f"- **{row}: not run**, though it was asked for" for row in unproven]
    bad = failed(records)
    skipped = sum(record["outcome"] == "skipped" for record in records)
    minutes = sum(record["minutes"] for record in records)
    lines.append(
        f"{len(records)} tests of {len({record['row'] for record in records})} rows in {minutes:.1f} minutes:"
        f" {len(records) - len(bad) - skipped} hold, {len(bad)} do not, {skipped} could not be run here."
    )
    return "\n".join(lines) + "\n"


def _summary(records: list[Record]) -> list[str]:
    """A line a test."""
    lines = ["| row | on | what was measured | verdict | min |", "|---|---|---|---|---|"]
    for row in ROWS:
        for record in (one for one in records if one["row"] == row):
            told = [
                f"{figure['name']}: {figure['value']}"
                for figure in record["figures"]
                if figure["brief"] or figure["ok"] is False
            ]
            cells = (
                row,
                record["case"],
                "; ".join(told) or record["fault"][-200:],
                _VERDICTS[record["outcome"]],
                record["minutes"],
            )
            lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return lines


def _of_row(row: str, records: list[Record]) -> list[str]:
    told = ROWS[row]
    lines = [f"## {row}: {told.threat}", "", f"Done: {told.done}.", "", f"Expected: {told.expected}.", ""]
    for record in records:
        verdict = _VERDICTS[record["outcome"]]
        name = record["test"].rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
        lines += [f"**{record['case'] or 'once'}**: {name}: {verdict}, {record['minutes']} min", ""]
        if record["figures"]:
            lines += ["| figure | measured | expected | |", "|---|---|---|---|"]
            lines += [_of_figure(figure) for figure in record["figures"]] + [""]
        if record["outcome"] == "skipped" or (
            record["outcome"] == "failed" and not any(f["ok"] is False for f in record["figures"])
        ):
            lines += ["```", record["fault"][-1500:], "```", ""]
    return lines


def _of_figure(figure: dict[str, Any]) -> str:
    mark = {True: "yes", False: "**NO**", None: ""}[figure["ok"]]
    cells = (figure["name"], figure["value"], figure["expected"])
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + f" | {mark} |"
