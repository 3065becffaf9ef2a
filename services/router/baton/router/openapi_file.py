"""The OpenAPI file. Bodies are checked by us, so the framework does not know their models and learns them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from baton.requests.anthropic import CountTokensRequest, MessagesRequest
from baton.requests.batches import BatchRequest
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.pooling import ClassifyRequest, EmbeddingRequest, PoolRequest, RerankRequest, ScoreRequest
from baton.requests.responses import ResponsesRequest
from baton.requests.tokenize import DetokenizeRequest, TokenizeRequest
from baton.router.auth import ADMIN_PATHS, PUBLIC_PATHS
from baton.router.error_forms import form_of

_MODELS = (
    *(ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, ResponsesRequest, BatchRequest),
    *(MessagesRequest, CountTokensRequest),
    *(EmbeddingRequest, PoolRequest, ClassifyRequest, ScoreRequest, RerankRequest),
)
_REFUSED = "Refused"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Name the errors that a route may answer with. What they look like `openapi_document` says, by the route's path."""
    return {status: {"description": _REFUSED} for status in statuses}


def operation(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a route's body and answers."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "The answer, or its events", "content": {"application/json": {}, "text/event-stream": {}}}
    }
    return {
        "responses": answers | errors(400, 404, 408, 413, 429, 499, 503, 504),
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def openapi_document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, models = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(models["$defs"])
    bearer = {"type": "http", "scheme": "bearer"}
    components["securitySchemes"] = {"key": bearer, "admin_key": bearer}
    for path, operations in document["paths"].items():
        for described in operations.values():
            if path not in PUBLIC_PATHS:
                described["security"] = [{"admin_key" if path in ADMIN_PATHS else "key": []}]
                described["responses"].update({str(status): answer for status, answer in errors(401, 431).items()})
            described["responses"].pop("422", None)
            for answer in described["responses"].values():
                if answer["description"] == _REFUSED:
                    answer["content"] = {"application/json": {"schema": form_of(path).schema}}
    return document
