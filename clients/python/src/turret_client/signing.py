"""Ed25519 signatures on packages: a key pair, and the signature of a package file as a push sends it.

What is signed is the ASCII text "turret-package-v1\\n" and the package's digest. `cryptography` is imported when first needed; it
comes with `turret-client[sign]`.
"""

import base64
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from turret_client.errors import InvalidArgument
from turret_client.keys import checked_key_name

PREFIX = b"turret-package-v1\n"


def new_signing_key(file: Path) -> str:
    """Writes a new private key as PEM, readable by its owner only, and returns the public one: base64 of its 32 bytes.

    Raises InvalidArgument where `file` is there already: a key is never overwritten.
    """
    key = _ed25519().Ed25519PrivateKey.generate()
    serialization = _serialization()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidArgument(f"{file} is there already, and a key is never overwritten: name another file.") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def sign_package(package: str | os.PathLike[str], key_file: str | os.PathLike[str], signer: str) -> str:
    """The signature of a package file, as `push` takes it: "SIGNER:BASE64".

    key_file  the private key as PEM, as `turret keygen --signer` wrote it
    signer    the name under which the server knows the public key
    Raises InvalidArgument for what cannot be signed, such as a folder, and for a file that holds no such key.
    """
    package, key_file = Path(package), Path(key_file)
    if package.is_dir():
        raise InvalidArgument(
            f"A signature is over a package's digest and {package} is a folder: make it one with `turret convert` first, and push that."
        )
    checked_key_name(signer)
    key = _private_key(key_file)
    with package.open("rb") as stream:
        digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    return f"{signer}:{base64.b64encode(key.sign(PREFIX + digest.encode())).decode()}"


def _private_key(file: Path) -> Any:
    pem = file.read_bytes()
    try:
        key = _serialization().load_pem_private_key(pem, password=None)
    except TypeError:
        raise InvalidArgument(f"The key in {file} is encrypted: give one without a password.") from None
    except ValueError:
        key = None
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise InvalidArgument(f"{file} holds no Ed25519 private key in PEM: make one with `turret keygen --signer NAME`.")
    return key


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise _missing() from error
    return ed25519


def _serialization() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise _missing() from error
    return serialization


def _missing() -> InvalidArgument:
    return InvalidArgument("Signing needs the package 'cryptography', which is missing: install turret-client[sign].")
