"""The image's health check: exit code 0 if the server in this container answers /readyz with 200, else a traceback that says why."""

import os
import urllib.request

port = os.environ.get("TURRET_PORT", "8080")
# No proxy: the environment's may be meant for a backbone's download.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=4) as answer:
    print(answer.read().decode())
