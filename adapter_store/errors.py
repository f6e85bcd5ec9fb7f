"""What can go wrong in the store. Each error carries one sentence for the person who caused it; `server/errors.py` gives it a status."""


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


class NotFound(StoreError):
    """An unknown name, version, alias or digest."""


class AlreadyExists(StoreError):
    """A publish with "only if it does not exist" (If-None-Match: *) met an existing name."""


class Conflict(StoreError):
    """A change that the present state of the catalogue forbids, such as deleting what others refer to."""


class BrokenFile(StoreError):
    """A file of the operator's (API keys, signers, the audit log) that cannot be used; the sentence names the file and the field."""


class Unsigned(StoreError):
    """A package without a signature, under a name whose packages must be signed."""


class BadSignature(StoreError):
    """A signature that is malformed, of an unknown or wrong signer, or not of this package."""
