"""Python client of Turret: `Turret` (blocking) and `AsyncTurret`, typed results, typed errors."""

from turret_client.client import AsyncTurret, Turret
from turret_client.errors import (
    BadRequest,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    DigestMismatch,
    Forbidden,
    InvalidArgument,
    NotFound,
    Overloaded,
    RowFailed,
    ServerError,
    TimedOut,
    TooLarge,
    TurretError,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
    Unprocessable,
)
from turret_client.protocol import Row
from turret_client.results import Array, Embeddings, Entity, Health, Label, Prediction, Predictions
from turret_client.version import __version__

__all__ = [
    "Array",
    "AsyncTurret",
    "BadRequest",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DigestMismatch",
    "Embeddings",
    "Entity",
    "Forbidden",
    "Health",
    "InvalidArgument",
    "Label",
    "NotFound",
    "Overloaded",
    "Prediction",
    "Predictions",
    "Row",
    "RowFailed",
    "ServerError",
    "TimedOut",
    "TooLarge",
    "Turret",
    "TurretError",
    "Unauthorized",
    "Unavailable",
    "UnexpectedResponse",
    "Unprocessable",
    "__version__",
]
