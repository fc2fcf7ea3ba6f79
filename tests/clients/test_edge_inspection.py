"""What `gateway check` says of the HTTP ports."""

from __future__ import annotations

from pathlib import Path

from clients.cli import edge_inspection
from clients.cli.inspection import FAULT, OK, WARNING
from gateway.process.settings import Settings
from tests.support import edge_certificates


def told(folder: Path) -> tuple[str, str]:
    """Level and message about the certificate of a folder."""
    settings = Settings(tls_cert=folder / "cert.pem", tls_key=folder / "key.pem")
    [finding] = edge_inspection.certificate(settings)
    return finding.level, finding.message


def test_a_good_certificate_is_told_with_its_names_and_days(tmp_path: Path) -> None:
    edge_certificates.write(tmp_path, days=90.5)
    assert told(tmp_path) == (OK, f"{tmp_path / 'cert.pem'} is for localhost, 127.0.0.1; good for 90 days")


def test_one_that_expires_soon_or_has_expired_is_a_warning(tmp_path: Path) -> None:
    for days, word in ((5, "expires on"), (-2, "expired on")):
        edge_certificates.write(tmp_path, days=days)
        level, message = told(tmp_path)
        assert level == WARNING
        assert word in message


def test_one_that_cannot_be_used_is_a_fault(tmp_path: Path) -> None:
    level, message = told(tmp_path)
    assert (level, message) == (FAULT, f"{tmp_path / 'cert.pem'}: No such file or directory")


def test_plain_http_is_told(tmp_path: Path) -> None:
    [finding] = edge_inspection.certificate(Settings())
    assert (finding.level, finding.message[:4]) == (OK, "off:")


def test_networks_that_are_too_wide_to_be_anybodys_own_are_a_warning() -> None:
    settings = Settings(trusted_proxies="10.0.0.0/8, 128.0.0.0/1, fd00::/16, 2000::/3")  # type: ignore[arg-type]  # read as written
    findings = list(edge_inspection.trusted_proxies(settings))
    assert [finding.message.split()[0] for finding in findings] == ["128.0.0.0/1", "2000::/3"]
    assert {finding.level for finding in findings} == {WARNING}
