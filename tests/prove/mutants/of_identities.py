"""What guards certificates, broken: revocation at every RPC, and renewal that loses nothing."""

from __future__ import annotations

from tests.prove.mutants.mutant import Mutant

_REVOCATION = "tests/gateway/test_rpc_revocation.py"

OF_IDENTITIES = (
    Mutant(
        "revoked-certificate-passes",
        "A revoked certificate is refused at the next RPC.",
        "gateway/rpc/access.py",
        "        self._check_revoked(name, context)\n",
        "",
        (f"{_REVOCATION}::test_a_revoked_certificate_is_refused_on_a_connection_that_stands",),
    ),
    Mutant(
        "revoked-list-never-read-again",
        "auth reads what was revoked while it runs.",
        "services/auth/__main__.py",
        '                looking(revoked.look, every=READ_EVERY, name="revoked-identities"),\n',
        "",
        ("tests/clients/test_identity.py::test_a_revoked_identity_is_refused_from_the_next_call_on_and_a_new_one_is_good",),
    ),
    Mutant(
        "revocation-taken-back",
        "What is revoked stays so.",
        "gateway/storage/revoked_identities.py",
        "            if before is not None and before.issued_until >= until:\n",
        "            if False:\n",
        (f"{_REVOCATION}::test_what_is_revoked_stays_so",),
    ),
    Mutant(
        "old-channel-closed-under-a-call",
        "A renewed certificate ends no RPC that runs on the old channel.",
        "gateway/client/connection.py",
        "            over = {old for old in self._replaced if not old.running}\n",
        "            over = set(self._replaced)\n",
        ("tests/gateway/test_client_renewal.py::test_a_line_is_closed_when_its_last_call_has_ended",),
    ),
)
