"""Health and metrics."""

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from server.api.wire import json_response, services
from server.errors import ApiError

router = APIRouter(tags=["operations"])

EXPOSITION: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/healthz", summary="Whether the process is alive")
async def healthz() -> Response:
    """Always 200 while the event loop turns."""
    return json_response({"status": "ok"})


@router.get("/readyz", summary="Whether the server can serve")
async def readyz(request: Request) -> Response:
    """200 while the engine thread runs and the store's log was read a moment ago, else 503."""
    app = services(request)
    if not app.scheduler.alive:
        raise ApiError(503, "engine_down", "The engine thread is not running: restart the server.")
    if not app.following.in_step:
        raise ApiError(503, "store_unreachable", "The store cannot be read; the server's log says why.")
    return json_response({"status": "ready", "backbone": app.backbone.name, "adapters": len(app.store.catalog.entries())})


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=EXPOSITION)
async def metrics(request: Request) -> Response:
    """Text exposition format."""
    app = services(request)
    app.metrics.queued_tokens.set(app.scheduler.queued_tokens)
    app.metrics.resident_packages.set(len(app.residency))
    app.metrics.resident_bytes.set(app.residency.bytes)
    app.metrics.audit_lost.set(app.access.audit.lost)
    for setting, broken in app.access.broken().items():
        app.metrics.broken_files.labels(setting).set(broken)
    for name, tier in app.residency.occupied().items():
        app.metrics.tier_bytes.labels(name).set(tier.bytes)
        app.metrics.tier_packages.labels(name).set(tier.packages)
        app.metrics.tier_waiting.labels(name).set(tier.waiting)
    return Response(generate_latest(app.metrics.registry), media_type=CONTENT_TYPE_LATEST)
