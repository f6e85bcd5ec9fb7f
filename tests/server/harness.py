"""The real app on a backbone and an empty store, without a socket, and what most tests say to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings

# The limits of the app that most tests share (conftest's `client`).
MAX_ROWS, MAX_BODY, MAX_UPLOAD = 8, 20_000, 200_000


@contextmanager
def serving(backbone: Path | str, store: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of `create_app`'s app, with its lifespan; a fault of the server is a 500, as over a socket."""
    app = create_app(Settings(backbone=str(backbone), store=str(store), threads=1, device="cpu", **settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def folder_form(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a folder as multipart/form-data, those of a setup's folders as `folder/file`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [("files", (path.relative_to(folder).as_posix(), path.read_bytes())) for path in paths]


def push(client: TestClient, name: str, folder: Path, **params: Any) -> dict[str, Any]:
    """Publishes a folder that must be taken."""
    answer = client.put(f"/v1/adapters/{name}", files=folder_form(folder), params=params)
    assert answer.status_code in (200, 201), answer.text
    published: dict[str, Any] = answer.json()
    return published


def predict(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    """The results of a request all of whose rows must answer."""
    answer = client.post("/v1/predict", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert not [result for result in results if "error" in result]
    return results


def array(output: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A raw output of the wire as an array, its shape checked."""
    values = np.array(output["data"], dtype=np.float32)
    assert list(values.shape) == output["shape"]
    return values


def put(client: TestClient, name: str, data: bytes, **params: str) -> dict[str, Any]:
    """Publishes a package file that must be taken."""
    answer = client.put(f"/v1/adapters/{name}", content=data, params=params)
    assert answer.status_code in (200, 201), answer.text
    published: dict[str, Any] = answer.json()
    return published


def error(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The error of an answer in Turret's and OpenAI's envelope, checked: one sentence, one code."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code, body
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]
    fault: dict[str, Any] = body["error"]
    return fault
