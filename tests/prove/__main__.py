"""Proves the rows in full: `python -m tests.prove [--rows M1,C2] [--database sqlite] [--seed 7] [--tenth] [--report FILE]`.
`--list` says what the rows are.

Runs them one after another on a machine that should have nothing else to do, prints a report and exits with 1 when one does
not hold, or was not run at all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.prove import report
from tests.prove.register import BOTH, ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST = 1800  # seconds that one test may take


def main() -> int:
    options = _options()
    if options.list:
        print(report.table_of_rows())
        return 0
    wanted = options.rows or list(ROWS)
    with tempfile.TemporaryDirectory(prefix="gateway-prove-") as folder:
        record = Path(folder) / "record.jsonl"
        environment = os.environ | {"GATEWAY_TEST_SEED": str(options.seed), "GATEWAY_TEST_RECORD": str(record)}
        environment |= {"GATEWAY_TEST_ROWS": ",".join(wanted), "GATEWAY_TEST_DATABASES": ",".join(options.databases)}
        environment |= {} if options.tenth else {"GATEWAY_TEST_FULL": "1"}
        command = [sys.executable, "-m", "pytest", "tests/prove", "-v", "--tb=short", "-p", "no:randomly", "-p", "no:xdist"]
        code = subprocess.run(
            [*command, f"--timeout={LONGEST}", f"--basetemp={folder}/pytest"], cwd=REPOSITORY, env=environment, check=False
        ).returncode
        records = report.read(record)
    unproven = report.missing(records, wanted, options.databases)
    size = "a tenth" if options.tenth else "in full"
    moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    heading = f"Gateway Zero, proven {size} on {', '.join(options.databases)}; seed {options.seed}; {moment}"
    text = report.render(records, heading=heading, unproven=unproven)
    print(text)
    if options.report:
        options.report.write_text(text)
    return 1 if code or unproven or report.failed(records) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="say what the rows are, and run nothing")
    parser.add_argument("--rows", type=_rows, help="only these, such as M1,C2")
    parser.add_argument(
        "--database", dest="databases", type=_databases, default=list(BOTH), help="sqlite, postgres, or both (the default)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=int.from_bytes(os.urandom(3), "big"),
        help="of all chances; else a new one, which the report names",
    )
    parser.add_argument("--tenth", action="store_true", help="as large as in `make test`")
    parser.add_argument("--report", type=Path, help="a file for the report, too")
    return parser.parse_args()


def _rows(text: str) -> list[str]:
    rows = [row.strip().upper() for row in text.split(",") if row.strip()]
    if unknown := [row for row in rows if row not in ROWS]:
        raise argparse.ArgumentTypeError(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return rows


def _databases(text: str) -> list[str]:
    databases = [one.strip() for one in text.split(",") if one.strip()]
    if not databases or set(databases) - set(BOTH):
        raise argparse.ArgumentTypeError(f"{text!r}: name sqlite, postgres, or both with a comma between them")
    return databases


if __name__ == "__main__":
    sys.exit(main())
