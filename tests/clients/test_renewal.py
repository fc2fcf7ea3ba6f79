"""Certificates that are about to end are told of in time, and `gateway init` renews them and no others."""

from __future__ import annotations

import pytest

from gateway.rpc.identity import OWN_NAMES, issue
from tests.clients.conftest import Installation


def certificates(stack: Installation) -> dict[str, bytes]:
    return {name: (stack.data / "pki" / name / "cert.pem").read_bytes() for name in OWN_NAMES}


def findings(stack: Installation) -> dict[str, tuple[str, str]]:
    """Level and message of each certificate."""
    told = stack.gateway("check", check=False).stdout.splitlines()
    rows = [line.split("\t") for line in told]
    return {row[1].removeprefix("certificate "): (row[0], row[2]) for row in rows if row[1].startswith("certificate ")}


@pytest.mark.parametrize(("days", "level"), [(20, "warning"), (-1, "fault"), (50, "ok")])
def test_what_ends_soon_or_has_ended_is_told_and_renewed(fresh: Installation, days: int, level: str):
    fresh.gateway("init", "--no-secrets")
    before = certificates(fresh)
    issue(fresh.data / "pki" / "ca", "proxy", fresh.data / "pki" / "proxy", days=days)
    assert findings(fresh)["proxy"][0] == level
    assert {level for name, (level, _) in findings(fresh).items() if name != "proxy"} == {"ok"}
    told = fresh.answer("init", "--no-secrets")
    assert told["made"]["certificates"] == ["proxy"]
    after = certificates(fresh)
    assert {name for name in OWN_NAMES if after[name] != before[name]} == {"proxy"}
    assert findings(fresh)["proxy"] == ("ok", "good for 824 days")


def test_an_authority_that_ends_soon_is_told_of(fresh: Installation, monkeypatch: pytest.MonkeyPatch):
    from gateway.rpc import identity

    monkeypatch.setattr(identity.create_authority, "__kwdefaults__", {"days": 100})
    fresh.gateway("init", "--no-secrets")
    told = findings(fresh)
    assert told["authority"][0] == "warning"
    assert "expires in 99 days" in told["authority"][1]
