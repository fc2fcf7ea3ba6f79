"""`gateway init`: everything that an installation needs before its services start. Harmless to repeat, and after a kill."""

from __future__ import annotations

import os
from typing import Annotated, Any

from cyclopts import Parameter

from clients.cli import first, keys
from clients.cli.host import bring_up_to_date, opened, settle_token_key
from clients.cli.output import Json, tell, tell_json
from clients.cli.places import base_url, own_name
from gateway.process.settings import load_settings


def init(
    *,
    no_secrets: Annotated[
        bool, Parameter(help="Make no administrator and no token yet; the next `gateway init` makes and shows them.")
    ] = False,
    url: Annotated[
        str | None, Parameter(help="Where people reach the proxy, where the settings cannot know; it is shown.")
    ] = None,
    called: Annotated[
        str | None, Parameter(help="How people call `gateway`, where that is not from here; it is shown.")
    ] = None,
    json: Json = False,
) -> None:
    """Make what is missing: keys, certificates, database, first administrator, first client token.

    What it finds it leaves as it is. The first password and token are shown once, on standard output.
    """
    settings = load_settings(os.environ)
    shown = first.Shown(url.rstrip("/") if url else base_url(settings), called or own_name())
    with keys.data_directory(settings):
        made: dict[str, Any] = {"certificates": keys.make_certificates(settings)}
        with opened(settings) as db:
            made["migrations"] = bring_up_to_date(db, settings)
            key, made["token_key"] = settle_token_key(db, settings.token_key_file)
            first.make_given_administrator(db, settings)
            told = first.are_told(db)
            if json:
                secrets = {} if told or no_secrets else first.as_json(first.make(db, settings, token_key=key), shown)
                tell_json({"made": made, "secrets_told": told or not no_secrets, **secrets})
            else:
                _tell_made(made)
                if not told and not no_secrets:
                    tell(
                        first.as_text(first.make(db, settings, token_key=key), shown, given=settings.admin_password is not None)
                    )
            if not told and not no_secrets:
                first.mark_told(db)


def _tell_made(made: dict[str, Any]) -> None:
    """Says what was made, a line a kind; nothing where nothing was."""
    if made["certificates"]:
        tell(f"made certificates: {', '.join(made['certificates'])}")
    if made["token_key"]:
        tell("made the token key")
    if made["migrations"]:
        tell(f"made the database: {', '.join(made['migrations'])}")
