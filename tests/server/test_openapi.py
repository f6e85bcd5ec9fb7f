"""Requests that schemathesis makes of the OpenAPI document: no route fails, and each answers as is documented: status, type and body.

Most of the names, versions, aliases and models that are drawn give way to some that exist, and now and then a whole body to one that
goes through, so that more than 404 is seen. The draws are derandomized.
"""

import tomllib
from base64 import urlsafe_b64encode
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import schemathesis
import tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from adapter_store.manifest import Head
from server.app import create_app
from server.settings import Settings

# What a request may ask for by a header: status, and what it says.
ASKED = {"x-turret-timeout-ms": (504, "deadline_exceeded"), "x-turret-cold": (503, "model_cold")}


def no_fault(context: Any, response: Any, case: Any) -> bool | None:
    """No status of 500 or more, but for what the request asked for itself: an answer in little time, or none while the model is cold."""
    asked = [ASKED[name.lower()] for name in case.headers or {} if name.lower() in ASKED]
    if any(response.status_code == status and code in response.text for status, code in asked):
        return None
    return not_a_server_error(context, response, case)


CHECKS: list[CheckFunction] = [
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NAMES = ("spam", "acme/mood", "ner", "vectors")
KNOWN: dict[str, tuple[Any, ...]] = {
    "name": NAMES,
    "model": (*NAMES, "base", "spam@prod", "spam@1", "stack(vectors, spam)", "average(spam:0.5, ner:0.5)#spam", "parallel(spam, ner)"),
    "version": (1, 2),
    "alias": ("prod", "canary", "latest"),
}
# Requests that go through, now and then in the place of what was drawn.
SOUND: dict[str, tuple[Any, ...]] = {
    "POST /v1/predict": (
        {"model": "spam", "inputs": "t1 t2", "output": "logits"},
        {"model": ["spam", "ner"], "inputs": ["t1", "t2 t3"]},
        {"requests": [{"model": "spam@1", "inputs": "t1"}, {"model": "base", "inputs": "t1", "output": "embedding"}]},
    ),
    "POST /v1/changes": (
        {"changes": [{"type": "alias", "name": "spam", "alias": "prod", "version": 1}]},
        {"changes": [{"type": "publish", "name": "copy", "source": "spam@1", "alias": "prod"}]},
        {
            "changes": [
                {"type": "alias", "name": "copy", "alias": "prod", "weights": {"1": 3}},
                {"type": "rollback", "name": "copy", "alias": "x"},
            ]
        },
    ),
    "PUT /v1/adapters/{name}": tuple(tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a"), seed) for seed in range(3)),
}
BEARER = "checker." + urlsafe_b64encode(sha256(b"a secret of the tests").digest()).decode().rstrip("=")
CALLERS: dict[str, dict[str, str]] = {
    "nobody": {},
    "a wrong key": {"authorization": f"Bearer {BEARER}x"},
    "predict": {"authorization": f"Bearer predict{BEARER}"},
    "admin": {"authorization": f"Bearer admin{BEARER}"},
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that a server publishes at its start."""
    folder = tmp_path_factory.mktemp("packages")
    kinds = tiny.KINDS
    (folder / "spam.safetensors").write_bytes(tiny.adapter(kinds["pfeiffer"], tiny.classifier("ham", "spam"), 1))
    (folder / "ner.safetensors").write_bytes(tiny.adapter(kinds["pfeiffer"], Head(type="tagging", labels=("O", "B-X")), 5))
    (folder / "vectors.safetensors").write_bytes(
        tiny.adapter(kinds["pfeiffer"], Head(type="embedding", layers=0, pooling="cls", normalize=True), 8)
    )
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key that may predict and one that may everything."""
    scopes = {"predictchecker": '["predict"]', "adminchecker": '["admin"]'}
    text = "".join(
        f'[keys.{name}]\nsha256 = "{sha256(CALLERS[name.removesuffix("checker")]["authorization"].split()[1].encode()).hexdigest()}"\n'
        f'scopes = {some}\nnames = ["*"]\n'
        for name, some in scopes.items()
    )
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    assert tomllib.loads(text)["keys"].keys() == scopes.keys()
    path.write_text(text)
    return path


def documented(backbone: Path, packages: Path, store: Path, **given_settings: Any) -> Any:
    """The document of an app; schemathesis starts it with the first request and ends it with the test."""
    made = Settings(
        backbone=str(backbone), store=str(store), publish=packages, threads=1, device="cpu", max_rows=8, max_upload_bytes=200_000,
        max_body_bytes=50_000, **given_settings,
    )  # fmt: skip
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(made), config=SchemathesisConfig(seed=1))


def steered(value: Any, salt: int, place: str = "") -> Any:
    """What was drawn, with something that exists in the place of most names, models, versions and aliases."""
    if isinstance(value, dict):
        return {key: steered(one, salt, key) for key, one in value.items()}
    if isinstance(value, list):
        return [steered(one, salt + number, place) for number, one in enumerate(value)]
    known, drawn = KNOWN.get(place), crc32(f"{place} {salt}".encode())
    if known is None or value is None or drawn % 4 == 0:
        return value
    chosen = known[drawn // 4 % len(known)]
    return chosen if isinstance(value, type(chosen)) else str(chosen)


def fuzz(document: Any, headers: dict[str, str], examples: int) -> dict[str, Counter[int]]:
    """Sends `examples` drawn requests to every route as one caller. What was answered, by route; fails with all that is wrong."""
    answered: dict[str, Counter[int]] = defaultdict(Counter)
    faults: list[str] = []
    operations = [found.ok() for found in document.get_all_operations()]
    for operation in sorted(operations, key=lambda one: one.method == "delete"):  # what exists is taken away last
        try:
            probe(operation, headers, answered[operation.label], examples)
        except (FailureGroup, Failure) as failure:
            faults.append(f"{operation.label}\n{failure}\n{getattr(failure, 'exceptions', '')}")
    assert faults == [], "\n\n".join(faults)
    return answered


def probe(operation: Any, headers: dict[str, str], answered: Counter[int], examples: int) -> None:
    """The requests to one route: as its document says, and not as it says."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]))
    def ask(case: Any) -> None:
        number = answered.total()
        case.path_parameters = steered(case.path_parameters, number)
        sound = SOUND.get(operation.label, ())
        if sound and number % 4 == 1:
            case.body = sound[number // 4 % len(sound)]
            case.media_type = "application/octet-stream" if isinstance(case.body, bytes) else "application/json"
        elif isinstance(case.body, dict | list):
            case.body = steered(case.body, number)
        answered[case.call_and_validate(headers=headers, checks=CHECKS).status_code] += 1

    ask()


def test_without_keys(backbone: Path, packages: Path, tmp_path: Path) -> None:
    answered = fuzz(documented(backbone, packages, tmp_path), {}, 40)
    assert len(answered) > 20
    refused = {label for label, statuses in answered.items() if not any(status < 300 for status in statuses)}
    assert len(refused) <= 3, answered  # what was deleted before it was asked for


@pytest.mark.parametrize("caller", CALLERS)
def test_with_keys(backbone: Path, packages: Path, keys: Path, tmp_path: Path, caller: str) -> None:
    answered = fuzz(documented(backbone, packages, tmp_path, api_keys=keys), CALLERS[caller], 12)
    welcome = {label.split()[1] for label, one in answered.items() if any(status < 300 for status in one)}
    statuses = {status for one in answered.values() for status in one}
    if caller in ("nobody", "a wrong key"):
        assert welcome == {"/healthz", "/readyz"}
        assert 401 in statuses
    else:
        assert "/v1/predict" in welcome
        assert (403 in statuses) == (caller == "predict")
