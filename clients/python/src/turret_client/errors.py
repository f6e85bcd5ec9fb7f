"""What can go wrong between a client and a server. Each error carries one sentence fit to be shown to a person.

`STATUSES` is the table from an answer's HTTP status to the class that is raised, `CODES` the one from its code where a
program may want to act on that alone. What happens before or instead of an answer (no connection, a broken answer, a path
that cannot be pushed) has classes of its own, with `status` None.
"""


class TurretError(Exception):
    """Base of all errors of the client.

    status      HTTP status of the answer; None where there was no answer
    code, type, param    as the server's error envelope has them; None where it has not
    message     one sentence; also `str(error)`
    request_id  the x-request-id of the exchange, to be found again in the server's log
    retry_after seconds that the server asked to wait, as its Retry-After said
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequest(TurretError):
    """400, and any other 4xx without a class of its own: the request is wrong as it stands."""


class Unauthorized(TurretError):
    """401: the server wants an API key, or does not know this one."""


class Forbidden(TurretError):
    """403: the key is known and lacks the right."""


class NotFound(TurretError):
    """404: no such adapter, version, alias or route."""


class Conflict(TurretError):
    """409 or 412: the present state forbids it (the name exists already, another package refers to it)."""


class TooLarge(TurretError):
    """413: the file or request passes the server's limit."""


class Unprocessable(TurretError):
    """422: well formed, but not possible (a package that breaks its shape law, a text beyond the limit)."""


class UnsignedPackage(Unprocessable):
    """422 unsigned_package: the server's policy wants packages of this name signed, and this one is not."""


class BadSignature(Unprocessable):
    """422 bad_signature: the signature is not one of this package by this signer, or the signer is not known or not allowed."""


class Overloaded(TurretError):
    """429: too much at once, such as a full queue; `retry_after` says for how many seconds to wait, if the server said so."""


class QuotaExceeded(Overloaded):
    """429 quota_exceeded: the API key has used up its requests or tokens of this minute."""


class TooManyUploads(Overloaded):
    """429 too_many_uploads: as many uploads as the server takes are under way."""


class Unavailable(TurretError):
    """503: the server is not ready, or is shutting down."""


class ModelCold(Unavailable):
    """503 model_cold: the model is not on the device yet and the request asked not to wait for it (`cold="refuse"`)."""


class DeadlineExceeded(TurretError):
    """504: the server could not answer within the request's deadline."""


class ServerError(TurretError):
    """Any other 5xx."""


class UnexpectedResponse(TurretError):
    """An answer that is not what Turret's wire promises: broken JSON, a missing field, a redirect. Often not a Turret server."""


class ConnectionFailed(TurretError):
    """No whole answer arrived. `sent` tells whether the server may have seen the request."""

    def __init__(self, message: str, *, sent: bool, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.sent = sent


class TimedOut(ConnectionFailed):
    """The server took longer than the client's timeout. Never retried: the server is likely still at work on it."""


class DigestMismatch(TurretError):
    """The bytes that arrived are not those of the digest; nothing was left on disk."""


class InvalidArgument(TurretError):
    """Refused by the client before anything was sent: a name, URL, path or value that no server would take."""


class RowFailed(TurretError):
    """One row of a predict answer is an error while others may have answered; raised when that row's output is read."""


STATUSES: dict[int, type[TurretError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    413: TooLarge,
    422: Unprocessable,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}


CODES: dict[str, type[TurretError]] = {
    "bad_signature": BadSignature,
    "model_cold": ModelCold,
    "quota_exceeded": QuotaExceeded,
    "too_many_uploads": TooManyUploads,
    "unsigned_package": UnsignedPackage,
}


def error_class(status: int, code: str | None = None) -> type[TurretError]:
    """The class for an answer of this HTTP status, which is not 2xx; that of its code where this refines the status's."""
    general = _status_class(status)
    precise = CODES.get(code or "", general)
    return precise if issubclass(precise, general) else general


def _status_class(status: int) -> type[TurretError]:
    if status in STATUSES:
        return STATUSES[status]
    if 400 <= status < 500:
        return BadRequest
    return ServerError if status >= 500 else UnexpectedResponse
