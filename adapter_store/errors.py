"""What can go wrong in the store. Each error carries one sentence for the person who caused it; `server/errors.py` gives it a status."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SHOWN = 5
_PLAIN = {
    "extra_forbidden": "there is no field of this name",
    "missing": "this field is missing",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
}


def fault(details: Mapping[str, Any]) -> str:
    """What is wrong with a value: pydantic's sentence, or a plain one where that one speaks of Python."""
    return _PLAIN.get(details["type"]) or str(details["msg"]).removeprefix("Value error, ")


class StoreError(Exception):
    """Base of all errors of the store; `str(error)` is one sentence fit to be shown to a client."""


class InvalidName(StoreError):
    """A name, version, alias or model string that breaks the grammar of `names.py` or `composition.py`."""


class InvalidPackage(StoreError):
    """A package or folder whose bytes, manifest, names, shapes, dtypes or values are not what its manifest promises."""


class UnsupportedMethod(InvalidPackage):
    """A package or folder of a method, option or head that this version does not serve; the sentence names it."""


class WrongBackbone(InvalidPackage):
    """A sound package that was made for another backbone than the one it is published to."""


class GoldenExampleFailed(InvalidPackage):
    """A package whose golden examples come out otherwise than its manifest says."""


class NotFound(StoreError):
    """An unknown name, version, alias or digest."""


class AlreadyExists(StoreError):
    """A publish with "only if it does not exist" (If-None-Match: *) met an existing name."""


class Conflict(StoreError):
    """A change that the present state of the catalogue forbids, such as deleting what others refer to.

    `referrers` are the versions that stand in the way, as `acme/spam@3`; there are none in conflicts of other kinds.
    """

    def __init__(self, message: str, referrers: Sequence[str] = ()) -> None:
        self.message = message
        self.referrers = tuple(referrers)
        super().__init__(_listed(message, self.referrers, 0))

    def hidden(self, sees: Callable[[str], bool]) -> str:
        """The sentence for somebody who may know only of the names for which `sees(name)` is true."""
        visible = [referrer for referrer in self.referrers if sees(referrer.partition("@")[0])]
        return _listed(self.message, visible, len(self.referrers) - len(visible))


class Damaged(StoreError):
    """Bytes in the store that are not those that were published: their sha256 is not their digest."""


class BrokenFile(StoreError):
    """A file of the operator's (API keys, signers, the audit log) that cannot be used; the sentence names the file and the field."""


class Unsigned(StoreError):
    """A package without a signature, under a name whose packages must be signed."""


class BadSignature(StoreError):
    """A signature that is malformed, of an unknown or wrong signer, or not of this package."""


def _listed(message: str, referrers: Sequence[str], others: int) -> str:
    if not referrers and not others:
        return message
    listing = list(referrers[:_SHOWN]) + (["..."] if len(referrers) > _SHOWN else [])
    if others:
        listing.append("others that you may not see" if referrers else "one or more that you may not see")
    return f"{message}: {', '.join(listing)}."
