"""`turret-server`: reads the settings, wires the app, serves it with uvicorn."""

import errno
import json
import logging
import os
import socket
import sys
from importlib.metadata import PackageNotFoundError, version

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from adapter_store.errors import StoreError
from server import threads
from server.settings import Settings

# Seconds after which a thread that computes lets another have the interpreter (docs/decisions/0016). Python's own is 0.005.
SWITCH_INTERVAL = 0.0005


def main() -> None:
    """Runs the server until it is told to stop; exit code 1 with one sentence where it cannot start, 2 for wrong flags."""
    if "--version" in sys.argv[1:]:
        print(f"turret-server {_version()}")
        sys.exit(0)
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for fault in error.errors():
            flag = "--" + "-".join(str(part).replace("_", "-") for part in fault["loc"]) + ": " if fault["loc"] else ""
            print(f"turret-server: {flag}{fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_INTERVAL)
    threads.settle(os.environ, settings.threads or threads.cores())  # before anything imports torch
    sys.exit(serve(settings))


class _Announcing(uvicorn.Server):
    """A server that says how to call it once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the sockets, then prints a curl line that works as pasted."""
        await super().startup(sockets)
        if self.started:
            address = self.servers[0].sockets[0].getsockname()
            names = self.config.app.state.services.store.names()  # type: ignore[union-attr]
            host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host
            print(hint(f"http://{host}:{address[1]}", names), flush=True)


def hint(url: str, names: list[str]) -> str:
    """What to try first: a prediction if anything is published, else an embedding."""
    path, body = "/v1/embeddings", {"model": "base", "input": "Turret serves many tasks from one model."}
    if names:
        path, body = "/v1/predict", {"model": names[0], "inputs": "please book me a flight to Paris for tomorrow"}
    return (
        f"\nTurret serves {len(names)} adapters on {url} (docs: {url}/docs). Try:\n\n"
        f"  curl -s {url}{path} -H 'content-type: application/json' -d '{json.dumps(body)}'\n"
    )


def _version() -> str:
    try:
        return version("turret-server")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def serve(settings: Settings) -> int:
    """Serves until stopped; returns the exit code."""
    if not _free(settings.host, settings.port):
        print(
            f"turret-server: port {settings.port} of {settings.host} is taken: stop what listens there, or choose another with --port.",
            file=sys.stderr,
        )
        return 1
    # Imported here so that --help and wrong flags answer at once, without torch.
    from transformers.utils import logging as transformers_logging

    from server.app import create_app
    from server.engine.backbone import BackboneError
    from server.protocol import bounded

    transformers_logging.disable_progress_bar()
    try:
        app = create_app(settings)
    except (BackboneError, StoreError) as error:
        print(f"turret-server: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        http=bounded(2 * (settings.max_header_bytes + settings.max_target_bytes), settings.header_timeout),
        timeout_keep_alive=settings.keep_alive,
    )
    server = _Announcing(config)
    server.run()
    return 0 if server.started else 1


def _free(host: str, port: int) -> bool:
    """Whether nothing listens on a port, seen before the backbone is loaded. What else may be wrong with an address uvicorn says."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


if __name__ == "__main__":
    main()
