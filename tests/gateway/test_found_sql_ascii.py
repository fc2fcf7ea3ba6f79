"""A PostgreSQL that was set up without a locale keeps text as bytes; `gateway init` took its own key for another one there."""

from __future__ import annotations

from contextlib import closing

import psycopg

from gateway.storage.database import connect
from tests.support.postgres import shared_server


def test_a_database_without_an_encoding_gives_text_all_the_same():
    server = shared_server()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'C'")
    try:
        with closing(connect(server.url("ascii"))) as db:
            assert db.query("SELECT value FROM (SELECT ?::text AS value) AS one", ("na\u00efve",)) == [("na\u00efve",)]
    finally:
        server.drop(server.url("ascii"))
