"""create_app: mounts a router's routes. No globals; one app is one router."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from baton.router.admin_routes import admin_routes
from baton.router.anthropic.routes import anthropic_routes
from baton.router.auth import AdminAuthenticator, Authenticator, require_admin, require_key
from baton.router.batches.batch_routes import batch_routes
from baton.router.batches.batches import Batches
from baton.router.batches.file_routes import file_routes
from baton.router.cors import CrossOrigin
from baton.router.envelope import Envelope
from baton.router.http_config import HttpConfig
from baton.router.json_answers import answer_errors
from baton.router.local_guard import LocalGuard
from baton.router.openai.chat import chat_routes
from baton.router.openai.completions import completion_routes
from baton.router.openai.embeddings import embedding_routes
from baton.router.openai.models import model_routes
from baton.router.openai.scores import score_routes
from baton.router.operations import baton_version, health_routes, monitoring_routes
from baton.router.page.routes import page_routes
from baton.router.responses.routes import response_routes
from baton.router.router_state import RouterState
from baton.router.small_routes import ping_routes, small_routes

BATCHED = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"))
"""Routes whose requests may stand in a batch, where they are served."""


def create_app(router: RouterState, http: HttpConfig) -> Envelope:
    """Build a router as an ASGI application."""
    config = router.config
    app: ASGIApp = CrossOrigin(make_api(router), http)
    if http.is_local(config.api_key):
        app = LocalGuard(app, config.host, http)
    return Envelope(app, router.metrics, config, http)


def make_api(router: RouterState) -> FastAPI:
    """Build the routes, with who may ask and how errors are answered."""
    config = router.config
    batches = Batches(router)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await router.start()
        batches.start(app)
        try:
            yield
        finally:
            await batches.stop()
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
    app.state.router = router
    app.state.authenticator = Authenticator(config.api_key, config.cache_key)
    app.state.admin_authenticator = AdminAuthenticator(config.admin_api_key)
    for routes in (page_routes(), health_routes(router), ping_routes()):
        app.include_router(routes)
    private = (
        *(chat_routes, completion_routes, embedding_routes, score_routes, response_routes, anthropic_routes),
        *(model_routes, monitoring_routes),
    )
    made = [make(router) for make in private]
    endpoints = BATCHED & {getattr(route, "path", "") for routes in made for route in routes.routes}
    kept = (file_routes(router, batches), batch_routes(router, batches, endpoints))
    for routes in (*made, *kept, small_routes(router, made)):
        app.include_router(routes, dependencies=[Depends(require_key)])
    app.include_router(admin_routes(router), dependencies=[Depends(require_admin)])
    answer_errors(app)
    return app
