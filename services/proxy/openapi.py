"""`GET /openapi.json`: the routes as OpenAPI 3.1. The tests hold it against the table of routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.http_errors import TABLE
from services.proxy import openapi_admin
from services.proxy.openapi_parts import (
    COUNT,
    ERROR,
    MONEY,
    MONEY_OR_NONE,
    STATUS,
    TEXT,
    Schema,
    answer,
    list_of,
    object_of,
    ref,
)

_LIMIT: Schema = {"type": ["integer", "null"], "minimum": 1}


_MOMENT: Schema = {"type": "string", "format": "date-time"}
_A_MINUTE: Schema = {
    **object_of({"limit": COUNT, "remaining": COUNT, "resets_at": _MOMENT}),
    "type": ["object", "null"],
    "description": "What is left in this minute; null: no limit.",
}
_PERIOD_AND_LIMITS: Mapping[str, Schema] = {
    "resets_at": {"type": ["string", "null"], "format": "date-time"},
    "budget_period": TEXT,
    "limits": object_of(
        {
            "requests_per_minute": _A_MINUTE,
            "tokens_per_minute": _A_MINUTE,
            "max_parallel_requests": {
                **object_of({"limit": COUNT, "remaining": COUNT}),
                "type": ["object", "null"],
                "description": "How many more may be open at once; null: no limit.",
            },
        }
    ),
}
_SCHEMAS: Mapping[str, Schema] = {
    "Error": object_of(
        {
            "error": object_of(
                {
                    "message": TEXT,
                    "type": TEXT,
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
    "ChatCompletion": object_of({"choices": list_of({"type": "object"})}, required=False, open_ended=True),
    "Model": object_of({"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT}),
    "Models": object_of({"object": {"const": "list"}, "data": list_of(ref("Model"))}),
    "Balance": object_of(
        {
            "amount_spent": MONEY,
            "max_amount": MONEY_OR_NONE,
            "remaining": MONEY_OR_NONE,
            "held": MONEY,
            **_PERIOD_AND_LIMITS,
            "status": STATUS,
        }
    ),
    "Usage": object_of(
        {
            "total_tokens": COUNT,
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "amount_spent": MONEY,
            "max_amount": MONEY_OR_NONE,
            "remaining": MONEY_OR_NONE,
            "held": MONEY,
            **_PERIOD_AND_LIMITS,
            "currency": TEXT,
            "status": STATUS,
            "models": list_of(object_of({"model": TEXT, "requests": COUNT, "total_tokens": COUNT, "amount_spent": MONEY})),
            "recent": list_of(
                object_of(
                    {
                        "request_id": {"type": "string", "format": "uuid"},
                        "at": {"type": "string", "format": "date-time"},
                        "model": TEXT,
                        "tokens": COUNT,
                        "amount": MONEY,
                        "status": {"type": "string", "enum": ["admitted", "settled", "released", "expired"]},
                    }
                )
            ),
        }
    ),
    "Health": object_of({"status": TEXT}, open_ended=True),
}


def _get(summary: str, schema: str, **more: Any) -> Schema:
    return {"summary": summary, "responses": {"200": answer(summary, schema), "default": ERROR}, **more}


_OPEN: Schema = {"security": []}


_APPLICATIONS: Mapping[str, Schema] = {
    "/v1/chat/completions": {
        "post": {
            "summary": "A chat completion, in one piece or as server-sent events",
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ref("ChatCompletionRequest")}},
            },
            "responses": {
                "200": answer(
                    "The answer as the provider gave it",
                    "ChatCompletion",
                    **{"text/event-stream": {"schema": TEXT}},
                ),
                "default": ERROR,
            },
        }
    },
    "/v1/models": {"get": _get("The models that this token may use", "Models")},
    "/v1/models/{id}": {
        "get": _get(
            "One of them",
            "Model",
            parameters=[{"name": "id", "in": "path", "required": True, "schema": TEXT}],
        )
    },
    "/v1/token/usage": {"get": _get("What this token has used", "Usage")},
    "/v1/token/balance": {"get": _get("What is left of this token's budget", "Balance")},
}
_COMMON: Mapping[str, Schema] = {
    "/healthz": {"get": {**_get("Whether the proxy runs", "Health"), **_OPEN}},
    "/readyz": {"get": {**_get("Whether a call can be answered now", "Health"), **_OPEN}},
}


def document(*, applications: bool = True, admin: bool = True) -> Schema:
    """The description of a port. applications: whether `/v1` is there; admin: whether `/auth` and `/admin` are."""
    paths: dict[str, Any] = {**(_APPLICATIONS if applications else {}), **_COMMON, **(openapi_admin.PATHS if admin else {})}
    schemas = {**_SCHEMAS, **openapi_admin.SCHEMAS} if admin else dict(_SCHEMAS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gateway",
            "version": "1",
            "description": "AI models behind client tokens, in OpenAI's dialect, and their administration.",
        },
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"x-goog-api-key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                **{
                    name: {"type": "apiKey", "in": "header", "name": name}
                    for name in ("x-api-key", "api-key", "x-goog-api-key")
                },
                **(openapi_admin.SCHEMES if admin else {}),
            },
        },
    }
