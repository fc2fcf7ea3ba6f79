"""`GET /openapi.json`: the routes for applications, as OpenAPI 3.1. The tests hold it against the table of routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.proxy.errors import TABLE

_Schema = dict[str, Any]

_TEXT: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_MONEY: _Schema = {"type": "number", "description": "In units of the currency."}
_MONEY_OR_NONE: _Schema = {"type": ["number", "null"], "description": "In units of the currency; null: there is no budget."}
_STATUS: _Schema = {"type": "string", "enum": ["active", "disabled", "expired", "exhausted"]}
_LIMIT: _Schema = {"type": ["integer", "null"], "minimum": 1}


def _object(properties: Mapping[str, _Schema], *, required: bool = True, open_ended: bool = False) -> _Schema:
    schema: _Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(properties)
    if open_ended:
        schema["additionalProperties"] = True
    return schema


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


_SCHEMAS: Mapping[str, _Schema] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {
                        "type": ["string", "null"],
                        "description": "One of "
                        + ", ".join(sorted({row.code for row in TABLE.values()}))
                        + ", or a provider's own.",
                    },
                }
            )
        }
    ),
    "ChatCompletionRequest": {
        "description": "As the provider takes it. What stands here is read by the gateway; everything else passes as it came.",
        "type": "object",
        "required": ["model", "messages"],
        "additionalProperties": True,
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": 256},
            "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
            "stream": {"type": ["boolean", "null"]},
            "stream_options": {
                "type": ["object", "null"],
                "properties": {"include_usage": {"type": ["boolean", "null"]}},
            },
            "max_tokens": _LIMIT,
            "max_completion_tokens": _LIMIT,
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
        },
    },
    "ChatCompletion": _object({"choices": _list({"type": "object"})}, required=False, open_ended=True),
    "Model": _object({"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Balance": _object(
        {"amount_spent": _MONEY, "max_amount": _MONEY_OR_NONE, "remaining": _MONEY_OR_NONE, "held": _MONEY, "status": _STATUS}
    ),
    "Usage": _object(
        {
            "total_tokens": _COUNT,
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "amount_spent": _MONEY,
            "max_amount": _MONEY_OR_NONE,
            "remaining": _MONEY_OR_NONE,
            "held": _MONEY,
            "resets_at": {"type": ["string", "null"], "format": "date-time"},
            "currency": _TEXT,
            "status": _STATUS,
            "models": _list(_object({"model": _TEXT, "requests": _COUNT, "total_tokens": _COUNT, "amount_spent": _MONEY})),
            "recent": _list(
                _object(
                    {
                        "request_id": {"type": "string", "format": "uuid"},
                        "at": {"type": "string", "format": "date-time"},
                        "model": _TEXT,
                        "tokens": _COUNT,
                        "amount": _MONEY,
                        "status": {"type": "string", "enum": ["admitted", "settled", "released", "expired"]},
                    }
                )
            ),
        }
    ),
    "Health": _object({"status": _TEXT}, open_ended=True),
}

_IDS: _Schema = {
    "x-request-id": {
        "description": "The id of the call in the gateway's records.",
        "schema": {"type": "string", "format": "uuid"},
    }
}


def _answer(description: str, schema: str, **further: _Schema) -> _Schema:
    return {
        "description": description,
        "headers": _IDS,
        "content": {"application/json": {"schema": _ref(schema)}, **further},
    }


_ERROR = _answer("An error; `docs/errors.md` has a row for each code.", "Error")


def _get(summary: str, schema: str, **more: Any) -> _Schema:
    return {"summary": summary, "responses": {"200": _answer(summary, schema), "default": _ERROR}, **more}


_OPEN: _Schema = {"security": []}


def document() -> _Schema:
    """The description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gateway",
            "version": "1",
            "description": "AI models behind client tokens, in OpenAI's dialect. Administration is under `/auth` and `/admin`.",
        },
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"x-goog-api-key": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "summary": "A chat completion, in one piece or as server-sent events",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _ref("ChatCompletionRequest")}},
                    },
                    "responses": {
                        "200": _answer(
                            "The answer as the provider gave it",
                            "ChatCompletion",
                            **{"text/event-stream": {"schema": _TEXT}},
                        ),
                        "default": _ERROR,
                    },
                }
            },
            "/v1/models": {"get": _get("The models that this token may use", "Models")},
            "/v1/models/{id}": {
                "get": _get(
                    "One of them",
                    "Model",
                    parameters=[{"name": "id", "in": "path", "required": True, "schema": _TEXT}],
                )
            },
            "/v1/token/usage": {"get": _get("What this token has used", "Usage")},
            "/v1/token/balance": {"get": _get("What is left of this token's budget", "Balance")},
            "/healthz": {"get": {**_get("Whether the proxy runs", "Health"), **_OPEN}},
            "/readyz": {"get": {**_get("Whether a call can be answered now", "Health"), **_OPEN}},
        },
        "components": {
            "schemas": dict(_SCHEMAS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                **{
                    name: {"type": "apiKey", "in": "header", "name": name}
                    for name in ("x-api-key", "api-key", "x-goog-api-key")
                },
            },
        },
    }
