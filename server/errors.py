"""Every error of the wire, named once, with its status. The envelope is the called convention's (`envelope`)."""

import logging
from errno import EDQUOT, ENOSPC
from typing import Any

from adapter_store import errors as store
from server.access.quotas import QuotaExceeded, TooBigForQuota
from server.residency import Cold
from server.scheduler import DeadlineExceeded, QueueFull, Stopped
from server.tiers import LoadFailed, TooBig

log = logging.getLogger(__name__)


class ApiError(Exception):
    """An error with a status, for the client: `message` is one sentence, `code` a stable word, `param` the field at fault."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after


# Exception -> (status, code). The first row whose class matches wins.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (store.InvalidName, 400, "invalid_model"),
    (store.UnsupportedMethod, 422, "unsupported_method"),
    (store.WrongBackbone, 422, "wrong_backbone"),
    (store.Unsigned, 422, "unsigned_package"),
    (store.BadSignature, 422, "bad_signature"),
    (store.GoldenExampleFailed, 422, "golden_example_failed"),
    (store.InvalidPackage, 422, "invalid_package"),
    (store.NotFound, 404, "model_not_found"),
    (store.AlreadyExists, 412, "already_exists"),
    (store.Conflict, 409, "conflict"),
    (store.Damaged, 500, "damaged_package"),
    (store.StoreError, 503, "store_error"),
    (QuotaExceeded, 429, "quota_exceeded"),
    (TooBigForQuota, 422, "too_big_for_quota"),
    (LoadFailed, 500, "internal_error"),
    (TooBig, 422, "too_big_for_device"),
    (Cold, 503, "model_cold"),
    (QueueFull, 429, "queue_full"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (Stopped, 503, "shutting_down"),
)


def as_api_error(error: Exception) -> ApiError:
    """Any exception as an ApiError; an unknown one becomes a 500 that gives nothing away."""
    if isinstance(error, LoadFailed) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, ApiError):
        return error
    if _disk_full(error) or _disk_full(error.__cause__):
        return ApiError(507, "disk_full", "A disk of the server or of its store is full: nothing was changed; try again once it has room.")
    if type(error) is store.StoreError:  # its sentence names the store's address, which is nobody's business
        log.error("the store failed: %s", error)
        return ApiError(503, "store_error", "The store does not answer as it should: try again. The server's log says why.", retry_after=1)
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return ApiError(status, code, str(error), retry_after=getattr(error, "retry_after", None))
    return ApiError(500, "internal_error", "The server failed to answer this request; the fault is in its log.")


def _disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)


def error_type(status: int) -> str:
    """OpenAI's word for a class of errors."""
    return "invalid_request_error" if status < 500 and status != 429 else "rate_limit_error" if status == 429 else "server_error"


def detail(error: ApiError) -> dict[str, Any]:
    """The error object of Turret's and OpenAI's envelope, also used for one row of a mixed request."""
    return {"message": error.message, "type": error_type(error.status), "param": error.param, "code": error.code}


def envelope(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error answer in the convention of the called path: Hugging Face's is a bare sentence."""
    if path.startswith("/models/"):
        return {"error": error.message, "error_type": error.code}
    return {"error": detail(error)}
