"""Certificates: what is in them, who may read them, and what cannot be used."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from gateway.rpc.identity import Identity, IdentityError, _caller, create_authority, issue


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "ca"
    create_authority(folder)
    return folder


def names_in(identity: Identity) -> tuple[bytes, ...]:
    """The certificate's names as gRPC gives them to a servicer."""
    names = x509.load_pem_x509_certificate(identity.cert).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return tuple(str(name.value).encode() for name in names.value)


def test_an_issued_identity_is_read_back_from_its_folder(ca: Path, tmp_path: Path) -> None:
    issued = issue(ca, "proxy", tmp_path / "proxy")
    assert Identity.load(tmp_path / "proxy") == issued
    assert issued.name == "proxy"
    assert "PRIVATE KEY" not in repr(issued)


def test_keys_and_certificates_are_for_their_owner_alone(ca: Path, tmp_path: Path) -> None:
    issue(ca, "proxy", tmp_path / "proxy")
    for file in (*ca.iterdir(), *(tmp_path / "proxy").iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE((tmp_path / "proxy").stat().st_mode) == 0o700


def test_an_internal_services_rights_stand_in_its_certificate(ca: Path, tmp_path: Path) -> None:
    billing = issue(ca, "billing", tmp_path, rpcs=["RecordUsage", "ValidateToken"], rights=["record_unadmitted"])
    caller = _caller(names_in(billing))
    assert caller.name == "billing"
    assert caller.rpcs == {"RecordUsage", "ValidateToken"}
    assert caller.rights == {"record_unadmitted"}


def test_a_certificate_with_two_identities_is_nobody() -> None:
    assert _caller((b"gateway://identity/proxy", b"gateway://identity/operator")).name == ""


def test_a_certificate_without_an_identity_is_nobody() -> None:
    assert _caller((b"proxy.gateway.internal", b"https://gateway/identity/proxy", b"\xff")).name == ""


def test_an_authority_is_made_once(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes()
    assert create_authority(ca) is False
    assert (ca / "ca.key").read_bytes() == before


def test_half_an_authority_is_not_completed(tmp_path: Path) -> None:
    create_authority(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(IdentityError, match="half an authority"):
        create_authority(tmp_path)


def test_certificates_end_within_825_days_and_with_their_authority(ca: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "short", days=10)
    long = x509.load_pem_x509_certificate(issue(ca, "proxy", tmp_path / "a").cert)
    short = x509.load_pem_x509_certificate(issue(tmp_path / "short", "proxy", tmp_path / "b").cert)
    assert (long.not_valid_after_utc - long.not_valid_before_utc).days == 825
    assert (short.not_valid_after_utc - short.not_valid_before_utc).days <= 10


@pytest.mark.parametrize("name", ["", "Proxy", "a/b", "a b", "ü", "-a", "a" * 64, "proxy\n", "1a"])
def test_a_name_that_could_be_mistaken_is_refused(ca: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match="no name for an identity"):
        issue(ca, name, tmp_path)


def test_the_gateways_own_names_get_no_rights_of_their_own(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="gateway's own"):
        issue(ca, "proxy", tmp_path, rpcs=["ValidateToken"])


def test_a_right_that_is_no_word_is_refused(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no RPC and no right"):
        issue(ca, "billing", tmp_path, rpcs=["ValidateToken/../Beat"])


def test_loading_tells_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"cert\.pem"):
        Identity.load(tmp_path)


def test_loading_refuses_a_key_of_another_certificate(ca: Path, tmp_path: Path) -> None:
    issue(ca, "proxy", tmp_path / "a")
    other = issue(ca, "proxy", tmp_path / "b")
    (tmp_path / "a" / "key.pem").write_bytes(other.key)
    with pytest.raises(IdentityError, match="is not the key"):
        Identity.load(tmp_path / "a")


def test_loading_refuses_a_certificate_of_another_authority(ca: Path, tmp_path: Path) -> None:
    issue(ca, "proxy", tmp_path / "a")
    create_authority(tmp_path / "other")
    (tmp_path / "a" / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    with pytest.raises(IdentityError, match="was not issued by"):
        Identity.load(tmp_path / "a")


def test_loading_refuses_an_expired_certificate(ca: Path, tmp_path: Path) -> None:
    issue(ca, "proxy", tmp_path, days=-1)
    with pytest.raises(IdentityError, match="expired"):
        Identity.load(tmp_path)


def test_loading_refuses_what_is_no_certificate(ca: Path, tmp_path: Path) -> None:
    issue(ca, "proxy", tmp_path)
    (tmp_path / "cert.pem").write_text("hello")
    with pytest.raises(IdentityError, match="no readable certificate"):
        Identity.load(tmp_path)


def test_issuing_anew_replaces_the_old_one(ca: Path, tmp_path: Path) -> None:
    old = issue(ca, "proxy", tmp_path)
    new = issue(ca, "proxy", tmp_path)
    assert new != old
    assert Identity.load(tmp_path) == new
    assert {file.name for file in tmp_path.iterdir()} == {"cert.pem", "key.pem", "ca.pem"}
