"""A TOML file of the operator's, validated, and read again when it changes. Knows how to read one and the words that such files share;
what else is in it is the model's.

While the server runs, a file that breaks or disappears changes nothing: what it said last stays in force until it is sound again.
"""

import logging
import os
import re
import time
import tomllib
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, StrictStr, ValidationError

from adapter_store.errors import BrokenFile, fault
from adapter_store.names import PATTERN, shown

log = logging.getLogger(__name__)

MAX_BYTES = 16 << 20
# A file that was written less than this long ago may be written again without a new time, so its stamp is not relied on. In ns.
SETTLING = 2_000_000_000

# What a key or a signer is called: a bare key of TOML.
TITLE = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"

M = TypeVar("M", bound=BaseModel)


def _title(text: str) -> str:
    if not re.fullmatch(TITLE, text):
        raise ValueError("expected letters, digits, '_' and '-', at most 64, starting with a letter or digit")
    return text


def _pattern(text: str) -> str:
    if not PATTERN.fullmatch(text):
        raise ValueError("expected a name, a namespace as 'namespace/*', or '*'")
    return text


Title = Annotated[StrictStr, AfterValidator(_title)]
NamePattern = Annotated[StrictStr, AfterValidator(_pattern)]


class TomlFile(Generic[M]):
    """What a file says, as `model`; `what` is what sentences call it. Raises BrokenFile where it cannot be read at first.

    `fault` is the sentence of a file that broke since it was read (None: it is sound).
    """

    def __init__(self, path: Path, model: type[M], what: str) -> None:
        self.path, self._model, self._what = path, model, what
        self.fault: str | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._data, self.content = self._read()

    def reload_if_changed(self) -> bool:
        """Reads the file again if it is another one than before; True where `content` changed. Never raises."""
        try:
            if self._stamp is not None and self._stamp == _stamp(os.stat(self.path)):
                return False
            data, content = self._read()
        except (BrokenFile, OSError) as error:
            fault = str(error) if isinstance(error, BrokenFile) else self._sentence(_reason(error))
            if fault != self.fault:
                log.error("%s What it said before stays in force.", fault)
            self.fault = fault
            return False
        if self.fault is not None:
            log.info("%s %s is sound again.", self._what, self.path)
        changed, self.fault = data != self._data, None
        self._data, self.content = data, content
        return changed

    def _read(self) -> tuple[bytes, M]:
        """The bytes and what they say; remembers the file's stamp, also of one that is broken."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                settled = time.time_ns() - status.st_mtime_ns > SETTLING
                self._stamp = _stamp(status) if settled else None
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise BrokenFile(self._sentence(_reason(error))) from error
        if len(data) > MAX_BYTES:
            raise BrokenFile(self._sentence(f"it is larger than {MAX_BYTES} bytes"))
        return data, self._parsed(data)

    def _parsed(self, data: bytes) -> M:
        try:
            return self._model.model_validate(tomllib.loads(data.decode()))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(shown(str(part), 40)[1:-1] for part in first["loc"] if part != "[key]")
            message = fault(first)
            raise BrokenFile(self._sentence(f"{where}: {message}" if where else message)) from None
        except UnicodeDecodeError:
            raise BrokenFile(self._sentence("it is not UTF-8 text")) from None
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what tomllib lets through: dates, endless numbers, nesting
            raise BrokenFile(self._sentence(f"it is not TOML: {shown(str(error) or 'it is nested too deeply', 200)[1:-1]}")) from None

    def _sentence(self, reason: str) -> str:
        return f"{self._what} {self.path} cannot be used: {reason.rstrip('.')}."


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
