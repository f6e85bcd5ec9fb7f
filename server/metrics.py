"""Prometheus metrics of one app, in a registry of its own."""

from collections.abc import Set
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.core import Batch


class Metrics:
    """Counters and histograms; names start with `turret_`, units are in the names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("turret_requests", "HTTP requests", ["method", "path", "status"], registry=self.registry)
        self.request_seconds = Histogram("turret_request_seconds", "Time of a request", ["path"], registry=self.registry)
        self.rows = Counter("turret_rows", "Rows answered, by model and outcome", ["model", "outcome"], registry=self.registry)
        self._counted: dict[str, set[str]] = {}
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._rows: dict[tuple[str, str], Counter] = {}
        self.batch_tokens = Histogram(
            "turret_batch_tokens", "Tokens of a batch", registry=self.registry, buckets=[2**k for k in range(3, 15)]
        )
        self.batch_rows = Histogram("turret_batch_rows", "Rows of a batch", registry=self.registry, buckets=[2**k for k in range(11)])
        self.batch_seconds = Histogram("turret_batch_seconds", "Time of a batch on the engine", registry=self.registry)
        self.queued_tokens = Gauge("turret_queued_tokens", "Tokens that wait for the engine", registry=self.registry)
        self.resident_packages = Gauge("turret_resident_packages", "Packages on the device", registry=self.registry)
        self.resident_bytes = Gauge("turret_resident_bytes", "Bytes of packages on the device", registry=self.registry)

        self.broken_files = Gauge(
            "turret_access_file_broken",
            "1 while a file of keys or signers is broken and its former content in force",
            ["setting"],
            registry=self.registry,
        )
        self.audit_lost = Gauge("turret_audit_lines_lost", "Lines that the audit log's file did not take", registry=self.registry)
        self.tier_bytes = Gauge("turret_tier_bytes", "Bytes of packages in a tier", ["tier"], registry=self.registry)
        self.tier_packages = Gauge("turret_tier_packages", "Packages in a tier", ["tier"], registry=self.registry)
        self.tier_waiting = Gauge("turret_tier_waiting", "Sets of packages that wait for room in a tier", ["tier"], registry=self.registry)
        self.program_bytes = Gauge("turret_program_bytes", "Bytes of compiled setups: folded fusions", registry=self.registry)
        self.load_seconds = Histogram("turret_load_seconds", "Time of bringing a package into a tier", ["tier"], registry=self.registry)
        self.load_failures = Counter("turret_load_failures", "Packages that failed to load into a tier", ["tier"], registry=self.registry)
        self.evictions = Counter("turret_evictions", "Packages evicted from a tier", ["tier"], registry=self.registry)
        self.cold_seconds = Histogram(
            "turret_cold_seconds", "Wait of those who found a package cold, by outcome", ["outcome"], registry=self.registry
        )

    def count_row(self, model: str, outcome: str) -> None:
        """Counts a row that was answered. `model` is a version, or a word for what is none."""
        counter = self._rows.get((model, outcome))
        if counter is None:
            self._counted.setdefault(model.partition("@")[0], set()).add(model)
            counter = self._rows[model, outcome] = self.rows.labels(model, outcome)
        counter.inc()

    def on_request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Records a request that was answered; `path` is a route's template."""
        found = self._requests.get((method, path, status))
        if found is None:  # finding a child by its labels takes longer than counting
            found = self.requests.labels(method, path, str(status)), self.request_seconds.labels(path)
            self._requests[method, path, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def keep(self, name: str, versions: Set[str]) -> None:
        """Drops the rows of a name's versions that are gone, so that versions which come and go do not add up."""
        counted = self._counted.get(name, set())
        for model in [model for model in counted if "@" in model and model not in versions]:
            counted.discard(model)
            for outcome in ("ok", "error"):
                self._rows.pop((model, outcome), None)
                with suppress(KeyError):
                    self.rows.remove(model, outcome)
        if not counted:
            self._counted.pop(name, None)

    def on_load(self, tier: str, seconds: float, failed: bool) -> None:
        """Records a package's way into a tier."""
        self.load_seconds.labels(tier).observe(seconds)
        if failed:
            self.load_failures.labels(tier).inc()

    def on_evicted(self, tier: str) -> None:
        """Records that a package left a tier."""
        self.evictions.labels(tier).inc()

    def on_waited(self, seconds: float, outcome: str) -> None:
        """Records a wait for packages: ok, refused, timeout or error."""
        self.cold_seconds.labels(outcome).observe(seconds)

    def on_batch(self, batch: Batch, seconds: float) -> None:
        """Records a batch that ran."""
        self.batch_tokens.observe(batch.tokens)
        self.batch_rows.observe(len(batch.rows))
        self.batch_seconds.observe(seconds)
