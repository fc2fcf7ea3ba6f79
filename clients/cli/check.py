"""`gateway check`: looks for faults in settings, keys, disk, database and ports, and says what to do about each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict

from clients.cli import database_inspection, edge_inspection, inspection
from clients.cli.inspection import FAULT, Finding
from clients.cli.output import FAULT as FAULT_CODE
from clients.cli.output import OK, USAGE, Json, table, tell_json
from gateway.process.settings import Settings, SettingsError, load_settings

_INSPECTIONS: tuple[Callable[[Settings], Iterable[Finding]], ...] = (
    inspection.data_directory,
    inspection.file_system,
    inspection.disk_speed,
    inspection.certificates,
    inspection.internal_services,
    edge_inspection.certificate,
    edge_inspection.trusted_proxies,
    database_inspection.database,
    inspection.providers,
    inspection.prices,
    inspection.ports,
)


def check(*, json: Json = False) -> int:
    """Look for faults in settings, keys, disk, database and ports. Exit code 0: none; 1: some; 2: the settings cannot be read.

    Changes nothing. Warnings do not count as faults.
    """
    try:
        settings = load_settings(os.environ)
    except SettingsError as fault:
        findings = [Finding(FAULT, "settings", line) for line in fault.faults]
        return _show(findings, as_json=json, code=USAGE)
    findings = [finding for inspect in _INSPECTIONS for finding in inspect(settings)]
    return _show(findings, as_json=json, code=FAULT_CODE)


def _show(findings: list[Finding], *, as_json: bool, code: int) -> int:
    """Prints the findings; gives `code` when one of them is a fault."""
    sound = all(finding.level != FAULT for finding in findings)
    if as_json:
        tell_json({"ok": sound, "findings": [asdict(finding) for finding in findings]})
    else:
        table(("", "what", "finding"), ((finding.level, finding.subject, finding.message) for finding in findings))
    return OK if sound else code
