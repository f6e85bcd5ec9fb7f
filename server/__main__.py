"""`turret-server`: reads the settings, wires the app, serves it with uvicorn."""

import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from adapter_store.errors import StoreError
from server.settings import Settings


def main() -> None:
    """Runs the server until it is told to stop; exit code 1 with one sentence where it cannot start, 2 for wrong flags."""
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for fault in error.errors():
            flag = "--" + "-".join(str(part).replace("_", "-") for part in fault["loc"]) + ": " if fault["loc"] else ""
            print(f"turret-server: {flag}{fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.exit(serve(settings))


def serve(settings: Settings) -> int:
    """Serves until stopped; returns the exit code."""
    # Imported here so that --help and wrong flags answer at once, without torch.
    from transformers.utils import logging as transformers_logging

    from server.app import create_app
    from server.engine.backbone import BackboneError

    transformers_logging.disable_progress_bar()
    try:
        app = create_app(settings)
    except (BackboneError, StoreError) as error:
        print(f"turret-server: {error}", file=sys.stderr)
        return 1
    uvicorn.run(app, host=settings.host, port=settings.port, log_level=settings.log_level, access_log=False, server_header=False)
    return 0


if __name__ == "__main__":
    main()
