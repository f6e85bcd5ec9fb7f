"""Python client of Turret: `Turret` (blocking) and `AsyncTurret`, typed results, typed errors, typed changes."""

from turret_client.async_client import AsyncTurret
from turret_client.catalogue import Commit
from turret_client.changes import Delete, DropAlias, Publish, Rollback, SetAlias
from turret_client.client import Turret
from turret_client.errors import (
    BadRequest,
    BadSignature,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    DigestMismatch,
    Forbidden,
    InvalidArgument,
    ModelCold,
    NotFound,
    Overloaded,
    QuotaExceeded,
    RowFailed,
    ServerError,
    TimedOut,
    TooLarge,
    TooManyUploads,
    TurretError,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
    Unprocessable,
    UnsignedPackage,
)
from turret_client.protocol import Row
from turret_client.results import Array, Embeddings, Entity, Health, Label, Prediction, Predictions
from turret_client.signing import sign_package
from turret_client.version import __version__

__all__ = [
    "Array",
    "AsyncTurret",
    "BadRequest",
    "BadSignature",
    "Commit",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Delete",
    "DigestMismatch",
    "DropAlias",
    "Embeddings",
    "Entity",
    "Forbidden",
    "Health",
    "InvalidArgument",
    "Label",
    "ModelCold",
    "NotFound",
    "Overloaded",
    "Prediction",
    "Predictions",
    "Publish",
    "QuotaExceeded",
    "Rollback",
    "Row",
    "RowFailed",
    "ServerError",
    "SetAlias",
    "TimedOut",
    "TooLarge",
    "TooManyUploads",
    "Turret",
    "TurretError",
    "Unauthorized",
    "Unavailable",
    "UnexpectedResponse",
    "Unprocessable",
    "UnsignedPackage",
    "__version__",
    "sign_package",
]
