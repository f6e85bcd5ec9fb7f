"""The parts of a running server, as `app.create_app` wires them; handlers find them here. No module-level state."""

from dataclasses import dataclass
from pathlib import Path

from adapter_store.methods import Backbone
from adapter_store.store import Store
from server.access.control import Control
from server.following import Following
from server.inference import Inference
from server.metrics import Metrics
from server.publishing import Publisher
from server.residency import Residency
from server.router import Router
from server.scheduler import Scheduler
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a handler may use."""

    settings: Settings
    store: Store
    router: Router
    residency: Residency
    scheduler: Scheduler
    inference: Inference
    metrics: Metrics
    backbone: Backbone
    publisher: Publisher
    following: Following
    scratch: Path
    access: Control
    started: float
