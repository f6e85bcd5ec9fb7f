"""Wiring, in one place: `create_app(settings)` loads the backbone, opens the store and puts the parts together."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from adapter_store.importers.backbones import frozen_of
from adapter_store.methods import Backbone
from adapter_store.store import Store
from server.access.control import Control
from server.api import adapters, changes, huggingface, openai, operations, predict
from server.api.access import Guard
from server.api.documented import ANSWERING, CHANGING, READING, ErrorAnswer, HubErrorAnswer, documented
from server.api.faults import KINDS, on_error
from server.api.middleware import Around
from server.engine.backbone import load_backbone, load_tokenizer
from server.engine.engine import Engine, set_threads
from server.following import Following
from server.inference import Inference
from server.loading import Loader
from server.metrics import Metrics
from server.publishing import Publisher
from server.residency import Residency
from server.router import Router
from server.scheduler import Scheduler
from server.scratch import Scratch
from server.services import Services
from server.settings import Settings
from server.tasks.encode import Encoder, ModelIds
from server.tiers import Watch
from server.trial import Staging, Trial

# The conventions of the wire: their routes, which errors these may answer, and in which envelope.
PARTS: tuple[tuple[Any, tuple[int, ...], type[BaseModel]], ...] = (
    (operations, READING, ErrorAnswer),
    (predict, ANSWERING, ErrorAnswer),
    (openai, ANSWERING, ErrorAnswer),
    (changes, CHANGING, ErrorAnswer),
    (adapters, CHANGING, ErrorAnswer),
    (huggingface, ANSWERING, HubErrorAnswer),
)

# What is called without the framework around it.
HOT = (predict.HOT, openai.HOT, huggingface.HOT)


def create_app(settings: Settings, hot: bool = True) -> FastAPI:
    """The ASGI app; without `hot` every route goes through the framework. Raises BackboneError, StoreError, BrokenFile: it cannot serve."""
    access = Control.open(settings)
    set_threads(settings.threads)
    backbone = load_backbone(settings.backbone, settings.device, settings.dtype, settings.shown_backbone)
    limit = min(settings.max_input_tokens or backbone.max_tokens, backbone.max_tokens)
    encoder = Encoder(load_tokenizer(settings.backbone), limit, model_ids(backbone.config, backbone.spec))
    programs = settings.device_memory // 8  # the share of compiled setups; packages have the rest
    engine = Engine(backbone, program_bytes=programs)
    scratch = Scratch(settings.scratch)
    store = Store.open(
        settings.store,
        settings.max_upload_bytes,
        cache=settings.disk_cache or scratch.folder / "cache",
        cache_bytes=settings.disk_cache_bytes,
        grace=settings.grace,
        limits=settings.limits,
    )
    router = Router(store, backbone.spec, access.trust, reads=False)
    metrics = Metrics()
    scheduler = Scheduler(
        engine.run,
        settings.max_batch_tokens,
        settings.max_queue_tokens,
        metrics.on_batch,
        settings.max_key_queue_tokens or (settings.max_queue_tokens // (1 if settings.api_keys is None else 2)),
    )
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="turret-worker")
    loaders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="turret-loader")
    staging = Staging(store, router)
    residency = Residency(
        Loader(engine, scheduler.call, loaders, staging.local, staging.manifest, store.forget),
        settings.host_memory,
        settings.device_memory - programs,
        shared=backbone.device.type == "cpu",
        age_cap=settings.age_cap,
        load_timeout=settings.load_timeout,
        watch=Watch(metrics.on_load, metrics.on_evicted, metrics.on_waited),
    )
    metrics.program_bytes.set_function(lambda: engine.program_bytes)
    inference = Inference(router, encoder, residency, scheduler, workers, loaders, settings.request_limits, access.quotas)
    publisher = Publisher(
        store,
        router,
        backbone.spec,
        has_pooler=backbone.pooler is not None,
        has_lm_head=backbone.language_model.weight is not None,
        frozen=frozen_of(Path(settings.backbone)) if Path(settings.backbone).is_dir() else None,
        trial=Trial(router, residency, inference, staging),
        trust=access.trust,
        scratch=scratch.folder,
        max_tokens=limit,
    )
    if settings.publish is not None:
        publisher.sound(settings.publish)  # what is not stops the start here, with a sentence
    following = Following(store, residency, router, metrics.keep, settings.poll, max(settings.poll, settings.grace / 4))
    services = Services(
        settings=settings,
        store=store,
        router=router,
        residency=residency,
        scheduler=scheduler,
        inference=inference,
        metrics=metrics,
        backbone=backbone.spec,
        publisher=publisher,
        access=access,
        following=following,
        scratch=scratch.folder,
        started=time.time(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        following.start()
        watching = asyncio.create_task(access.watch())
        try:
            if settings.publish is not None:
                await run_in_threadpool(publisher.all_of, settings.publish)
            yield
        finally:
            watching.cancel()
            await following.stop()
            await residency.close()
            scheduler.stop()
            workers.shutdown(cancel_futures=True)
            loaders.shutdown(cancel_futures=True)
            access.audit.close()
            store.close()
            scratch.close()

    app = FastAPI(
        title="Turret",
        version="0.1.0",
        summary="Many NLP tasks from one frozen transformer.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    for part, statuses, model in PARTS:
        app.include_router(part.router, responses=documented(statuses, model))
    kinds: tuple[type[Exception], ...] = (Exception, *KINDS)
    for kind in kinds:
        app.add_exception_handler(kind, on_error)
    guard = Guard(app.routes, access)
    # Outside of the framework's own middleware, which does nothing for a hot route.
    app.middleware_stack = Around(app.build_middleware_stack(), settings, metrics, guard, access.audit, HOT if hot else ())
    return app


def model_ids(config: Any, spec: Backbone) -> ModelIds:
    """What the tokenizer's side knows of the backbone."""
    return ModelIds(
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        encoder_decoder=spec.decoder_layers > 0,
        hidden_size=spec.hidden_size,
    )
