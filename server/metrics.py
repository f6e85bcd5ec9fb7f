"""Prometheus metrics of one app, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.core import Batch


class Metrics:
    """Counters and histograms; names start with `turret_`, units are in the names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("turret_requests", "HTTP requests", ["method", "path", "status"], registry=self.registry)
        self.request_seconds = Histogram("turret_request_seconds", "Time of a request", ["path"], registry=self.registry)
        self.rows = Counter("turret_rows", "Rows answered, by model and outcome", ["model", "outcome"], registry=self.registry)
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

    def on_batch(self, batch: Batch, seconds: float) -> None:
        """Records a batch that ran."""
        self.batch_tokens.observe(batch.tokens)
        self.batch_rows.observe(len(batch.rows))
        self.batch_seconds.observe(seconds)
