"""The description of the HTTP endpoints: OpenAPI at `/openapi.json`, and the same for people at `/docs`."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from duologue import __version__
from duologue.server import assets
from duologue.server.chat import BODY
from duologue.server.fields import Field, Table

_KINDS: Mapping[type, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array", "items": {}},
    dict: {"type": "object"},
    object: {},
}
_BOUNDS: Mapping[type, tuple[str, str]] = {str: ("minLength", "maxLength"), list: ("minItems", "maxItems")}
_MEANINGS = {
    "messages": "objects with role (system, developer, user, assistant) and content; the last is the user's",
    "model": "ignored: a server has one model",
    "n": "number of answers",
    "stop": "texts before which an answer ends",
    "logprobs": "return log probabilities of the tokens",
    "top_logprobs": "with logprobs: so many of the most probable tokens, too",
    "response_format": "type text, json_object, or json_schema with json_schema.schema (llama.cpp only)",
    "stream": "server-sent events instead of one object",
    "stream_options": "with stream: include_usage adds a last chunk with the usage",
    "temperature": "0, the default, is greedy",
    "top_p": "nucleus sampling",
    "seed": "of the sampling; answer number i of n uses seed + i",
    "max_completion_tokens": "most tokens of an answer; the server may allow fewer",
    "max_tokens": "the older name of max_completion_tokens",
}
_SAMPLING: Table = {
    "model": Field(str),
    "temperature": Field(float, least=0, most=10),
    "top_p": Field(float, least=1e-6, most=1),
    "seed": Field(int),
    "max_completion_tokens": Field(int, least=1),
    "max_tokens": Field(int, least=1),
}
_SOCKETS = {
    "/v1/duplex": "WebSocket: the duplex protocol (docs/protocol.md)",
    "/v1/realtime": "WebSocket: OpenAI Realtime (docs/realtime.md)",
}


def schema_of(table: Table) -> dict[str, Any]:
    """The JSON schema of an object with the fields of `table`."""
    properties = {name: _property(name, field) for name, field in table.items()}
    needed = [name for name, field in table.items() if field.is_needed]
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


def _property(name: str, field: Field) -> dict[str, Any]:
    found = dict(schema_of(field.fields) if field.fields is not None else _KINDS[field.kind])
    least, most = _BOUNDS.get(field.kind, ("minimum", "maximum"))
    if field.least is not None:
        found[least] = field.least
    if field.most is not None:
        found[most] = field.most
    if field.choices:
        found["enum"] = list(field.choices)
    if field.default not in (None, (), {}):
        found["default"] = field.default
    if name in _MEANINGS:
        found["description"] = _MEANINGS[name]
    return found


def description() -> dict[str, Any]:
    """The OpenAPI description."""
    message = {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": {"message": {"type": "string"}}}},
    }
    problems = {
        "400": "the request cannot be answered",
        "401": "a bearer token is needed",
        "503": "no room, or not ready",
    }
    errors = {code: _answer(text, message) for code, text in problems.items()}
    body = {"application/json": {"schema": schema_of({**BODY, **_SAMPLING})}}
    streamed = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    secured: list[dict[str, list[str]]] = [{}, {"token": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Duologue",
            "version": __version__,
            "description": "\n".join(f"{path}: {text}" for path, text in _SOCKETS.items()),
        },
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "summary": "Answer a chat request",
                    "security": secured,
                    "requestBody": {"required": True, "content": body},
                    "responses": {"200": {"description": "the answer", "content": streamed}, **errors},
                }
            },
            "/v1/models": _get("The models, of which there is one", security=secured),
            "/metrics": _get("Metrics for Prometheus", kind="text/plain", security=secured),
            "/health": _get("Whether the process is alive"),
            "/ready": _get("Whether new conversations are admitted", problem="not yet, or no more"),
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _answer(text: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _get(
    summary: str, *, kind: str = "application/json", security: list[Any] | None = None, problem: str | None = None
) -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    responses = {"200": _answer("yes" if problem else summary, schema, kind)}
    if problem is not None:
        responses["503"] = _answer(problem, schema)
    return {"get": {"summary": summary, "responses": responses, **({"security": security} if security else {})}}


def page() -> str:
    """The description as a web page without scripts."""
    found = description()
    parts = []
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            parts += [_rows(body)] if body else []
            answers = "".join(
                f"<li><code>{code}</code> {escape(answer['description'])}</li>"
                for code, answer in operation["responses"].items()
            )
            parts.append(f"<ul>{answers}</ul>")
    sockets = "".join(f"<h2><code>{path}</code></h2><p>{escape(text)}.</p>" for path, text in _SOCKETS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Duologue: HTTP endpoints</title>'
        '<link rel="stylesheet" href="page/docs.css"></head><body><main><h1>HTTP endpoints</h1>'
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>'
        f"{''.join(parts)}{sockets}</main></body></html>"
    )


def _rows(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        limits = {
            key: value for key, value in field.items() if key not in ("type", "description", "items", "properties")
        }
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in limits.items())
        needed = "needed" if name in schema.get("required", ()) else ""
        cells = (
            name,
            str(field.get("type", "any")),
            ", ".join(filter(None, (needed, shown))),
            field.get("description", ""),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr><th>field</th><th>type</th><th>limits</th><th>meaning</th></tr>{''.join(rows)}</table>"


def routes() -> list[BaseRoute]:
    """They need no token: they say what every copy of this software says."""

    async def as_json(_: Request) -> Response:
        return JSONResponse(description())

    async def as_page(_: Request) -> Response:
        return Response(page(), media_type="text/html", headers=assets.headers())

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]
