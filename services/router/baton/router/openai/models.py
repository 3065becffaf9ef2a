"""The models that are served, by the names that clients may send."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from baton.errors import InvalidRequest
from baton.router.config import RouterConfig
from baton.router.json_response import JSON
from baton.router.openapi_file import errors
from baton.router.router_state import RouterState


class UnknownModel(InvalidRequest):
    """The request names a model that is not served."""

    status = 404


def model_routes(router: RouterState) -> APIRouter:
    """Serve /v1/models."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="Name the models that are served")
    async def models() -> Response:
        return JSON({"object": "list", "data": [_card(router, name) for name in router.config.model_names]})

    @routes.get("/v1/models/{name:path}", summary="Describe one model", responses=errors(404))
    async def model(name: str) -> Response:
        return JSON(_card(router, check_model(router.config, name)))

    return routes


def check_model(config: RouterConfig, name: str | None) -> str:
    """Return the name to answer under.

    Raises:
        UnknownModel: no such model is served here.
    """
    names = config.model_names
    if name is None:
        return names[0]
    if name not in names:
        raise UnknownModel(
            f"model={name[:80]!r} is not valid: served here: {', '.join(names)}.", field="model", code="model_not_found"
        )
    return name


def _card(router: RouterState, name: str) -> dict[str, Any]:
    facts = router.dispatcher.last_facts
    return {
        "id": name,
        "object": "model",
        "created": router.started_at,
        "owned_by": "baton",
        "root": router.config.model,
        "parent": None,
        "max_model_len": None if facts is None else facts.max_model_len,
    }
