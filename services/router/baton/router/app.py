"""create_app: builds a router's objects and mounts its routes. No globals; one app is one router."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI

from baton.registry import Registry
from baton.router.auth import Authenticator, require_key
from baton.router.config import RouterConfig
from baton.router.envelope import Envelope
from baton.router.json_answers import answer_errors
from baton.router.openai.chat import chat_routes
from baton.router.openai.completions import completion_routes
from baton.router.openai.models import model_routes
from baton.router.operations import baton_version, health_routes, monitoring_routes
from baton.router.page.routes import page_routes
from baton.router.router_state import RouterState


def create_app(config: RouterConfig, registry: Registry | None = None) -> Envelope:
    """Build a router as an ASGI application; `registry` replaces the one that the config names."""
    router = RouterState(config, registry)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await router.start()
        try:
            yield
        finally:
            await router.stop()

    app = FastAPI(
        title="Baton",
        version=baton_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.authenticator = Authenticator(config.api_key, config.cache_key)
    app.state.router = router
    for routes in (page_routes(), health_routes(router)):
        app.include_router(routes)
    private = (chat_routes, completion_routes, model_routes, monitoring_routes)
    for make in private:
        app.include_router(make(router), dependencies=[Depends(require_key)])
    answer_errors(app)
    return Envelope(app, router.metrics, config)
