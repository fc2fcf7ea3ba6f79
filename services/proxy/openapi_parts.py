"""What the descriptions of routes are made of: common types, references, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MONEY: Schema = {"type": "number", "description": "In units of the currency."}
MONEY_OR_NONE: Schema = {"type": ["number", "null"], "description": "In units of the currency; null: there is no budget."}
STATUS: Schema = {"type": "string", "enum": ["active", "disabled", "expired", "exhausted"]}


def object_of(properties: Mapping[str, Schema], *, required: bool = True, open_ended: bool = False) -> Schema:
    """An object. required: whether it has all of them. open_ended: whether it may have others."""
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(properties)
    if open_ended:
        schema["additionalProperties"] = True
    return schema


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


_IDS: Schema = {
    "x-request-id": {
        "description": "The id of the call in the gateway's records.",
        "schema": {"type": "string", "format": "uuid"},
    }
}


def answer(description: str, schema: str, **further: Schema) -> Schema:
    """An answer of a schema. further: other media types."""
    return {
        "description": description,
        "headers": _IDS,
        "content": {"application/json": {"schema": ref(schema)}, **further},
    }


ERROR = answer("An error; `docs/errors.md` has a row for each code.", "Error")
