"""All mutants."""

from __future__ import annotations

from tests.prove.mutants.of_bodies import OF_BODIES
from tests.prove.mutants.of_identities import OF_IDENTITIES
from tests.prove.mutants.of_ledger import OF_LEDGER
from tests.prove.mutants.of_proxy import OF_PROXY

MUTANTS = [*OF_LEDGER, *OF_PROXY, *OF_BODIES, *OF_IDENTITIES]
