"""Access control of one server: its keys, quotas, trusted signers and audit log, and the files behind them kept up to date."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Self

from adapter_store.signatures import Trust
from adapter_store.tomlfile import TomlFile
from server.access.audit import Audit
from server.access.keys import Keys
from server.access.quotas import Quotas
from server.settings import Settings

log = logging.getLogger(__name__)

# Seconds between two looks at the files.
PERIOD = 0.5


@dataclass(frozen=True, slots=True)
class Control:
    """What decides and what records. Without `keys` every caller is local and may do everything."""

    keys: Keys | None
    quotas: Quotas
    trust: Trust
    audit: Audit

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Reads the files that the settings name; raises BrokenFile."""
        keys = None if settings.api_keys is None else Keys(settings.api_keys)
        control = cls(keys, Quotas(), Trust(settings.signers), Audit(settings.audit_log))
        if keys is not None:
            control.quotas.set(keys.limits())
        return control

    def reload_if_changed(self) -> None:
        """Reads again what changed. Never raises: a broken file changes nothing."""
        before = {name: file.fault for name, file in self._files().items()}
        changed = {"api-keys": self.keys is not None and self.keys.reload_if_changed(), "signers": self.trust.reload_if_changed()}
        if self.keys is not None and changed["api-keys"]:
            self.quotas.set(self.keys.limits())
        for name, file in self._files().items():
            if changed[name] or file.fault != before[name]:
                self.audit.write("reload", {"setting": name, "file": str(file.path), "fault": file.fault})

    async def watch(self) -> None:
        """Looks at the files for as long as the server runs."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await asyncio.to_thread(self.reload_if_changed)
            except Exception:
                log.exception("the files of access control could not be looked at")

    def broken(self) -> dict[str, bool]:
        """For each file, by its setting, whether it broke since it was read."""
        return {name: file.fault is not None for name, file in self._files().items()}

    def _files(self) -> dict[str, TomlFile[Any]]:
        named = {"api-keys": None if self.keys is None else self.keys.file, "signers": self.trust.file}
        return {name: file for name, file in named.items() if file is not None}
