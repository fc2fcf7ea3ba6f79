"""What a person may have got wrong in the URL of the database, or in what its role may do: told in one line."""

from __future__ import annotations

import psycopg
import pytest

from gateway.errors import DatabaseUnavailable, InvalidArgument
from gateway.storage import waiting
from gateway.storage.database import connect
from gateway.storage.migrate import pending
from tests.support.ledger import make_database
from tests.support.postgres import shared_server


@pytest.mark.parametrize("password", ["a%Canary9", "a%ff%feb", "a%"])
def test_a_percent_sign_without_its_escape_is_a_fault_of_the_url(password):
    with pytest.raises(InvalidArgument, match="missing its escape") as raised:
        connect(f"postgresql://app:{password}@127.0.0.1:1/app")
    assert "anary9" not in str(raised.value)


def test_a_parameter_that_cannot_be_read_is_a_fault_of_the_url():
    with pytest.raises(InvalidArgument, match="connect_timeout"):
        connect("postgresql://app@127.0.0.1:1/app?connect_timeout=soon")


def test_a_role_without_rights_is_told_and_waited_for(postgres_url):
    make_database(postgres_url).close()
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url) as owner:
        owner.execute(f"CREATE ROLE {name}_weak LOGIN")
    weak = shared_server().url(name).replace("gateway@", f"{name}_weak@")
    try:
        db = connect(weak)
        with pytest.raises(DatabaseUnavailable, match="denies the role"):
            pending(db)
        db.close()
        told: list[str] = []

        def grant(reason: str) -> None:
            told.append(reason)
            with psycopg.connect(postgres_url) as owner:
                owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}_weak")

        waiting.for_database(weak, tell=grant).close()
        assert len(told) == 1 and "denies the role" in told[0]
    finally:
        with psycopg.connect(postgres_url) as owner:
            owner.execute(f"DROP OWNED BY {name}_weak")
            owner.execute(f"DROP ROLE {name}_weak")
