"""Who may call what: every route of the real app with every kind of caller, and names that a caller may not know of."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from callers import bearer, entry, key_of, write
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from harness import error, serving
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from adapter_store.errors import InvalidName, NotFound
from server.access.audit import Audit
from server.access.control import Control
from server.access.quotas import Quotas
from server.access.visibility import check_model, check_name
from server.api.access import RULES, Guard, Rule, State, state_of
from server.api.wire import note, terms
from server.core import LOCAL, Caller, Terms
from server.errors import ApiError

OLDER, PACKAGE = (tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam"), seed) for seed in (1, 2))
HIDDEN = "other/secret"

# What a caller that may call a route sends, and what it is answered, after `publish`. VERSION is the newest. A new route needs a row.
CALLS: dict[str, tuple[dict[str, Any], int]] = {
    "GET /healthz": ({}, 200),
    "GET /readyz": ({}, 200),
    "GET /metrics": ({}, 200),
    "GET /docs": ({}, 200),
    "GET /docs/oauth2-redirect": ({}, 200),
    "GET /openapi.json": ({}, 200),
    "POST /v1/predict": ({"json": {"model": "acme/x", "inputs": "t1"}}, 200),
    "POST /v1/embeddings": ({"json": {"model": "acme/x", "input": "t1"}}, 200),
    "POST /models/{model:path}": ({"json": {"inputs": "t1"}}, 200),
    "GET /models/{model:path}": ({}, 200),
    "GET /models/{model:path}/health": ({}, 200),
    "GET /v1/models": ({}, 200),
    "GET /v1/models/{model:path}": ({}, 200),
    "GET /v1/adapters": ({}, 200),
    "GET /v1/adapters/{name:path}": ({}, 200),
    "GET /v1/adapters/{name:path}/versions/{version}/package": ({}, 200),
    "PUT /v1/adapters/{name:path}": ({"content": PACKAGE}, 200),
    "PUT /v1/adapters/{name:path}/aliases/{alias}": ({"json": {"version": "VERSION"}}, 200),
    "DELETE /v1/adapters/{name:path}/aliases/{alias}": ({}, 200),
    "POST /v1/adapters/{name:path}/aliases/{alias}/rollback": ({}, 200),
    "POST /v1/adapters/{name:path}/load": ({"json": {}}, 200),
    "POST /v1/adapters/{name:path}/unload": ({}, 200),
    "POST /v1/changes": ({"json": {"changes": [{"type": "alias", "name": "acme/x", "alias": "prod", "version": "VERSION"}]}}, 200),
    "GET /v1/changes": ({}, 200),
    "DELETE /v1/adapters/{name:path}": ({}, 200),
    "DELETE /v1/adapters/{name:path}/versions/{version}": ({}, 200),
}
SCOPES = ("predict", "publish", "admin")


@pytest.fixture(scope="module")
def guarded(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An app with keys that hold one scope each on acme/*, one that holds all on foreign/*, and `root`, who may do everything."""
    folder = tmp_path_factory.mktemp("guarded")
    known = [entry(scope, scope, names=("acme/*", "mine")) for scope in SCOPES]
    file = write(folder / "keys.toml", *known, entry("foreign", *SCOPES, names=("foreign/*",)), entry("root", "admin"))
    with serving(backbone, folder / "store", api_keys=file) as client:
        assert client.put(f"/v1/adapters/{HIDDEN}", content=PACKAGE, headers=bearer("root")).status_code == 201
        yield client


def routes(client: TestClient) -> list[str]:
    """Every route of the app as the rules name them."""
    contexts = iter_route_contexts(client.app.routes)
    return sorted(f"{method} {one.path}" for one in contexts for method in one.methods - {"HEAD"})


def call(client: TestClient, route: str, headers: dict[str, str], version: int = 1) -> Any:
    """Calls a route for acme/x, its parameters and body filled."""
    method, path = route.split(" ")
    for parameter, value in (("{name:path}", "acme/x"), ("{model:path}", "acme/x"), ("{version}", str(version)), ("{alias}", "prod")):
        path = path.replace(parameter, value)
    return client.request(method, path, headers=headers, **filled(CALLS[route][0], version))


def filled(value: Any, version: int) -> Any:
    """A body with the version in its place."""
    if isinstance(value, dict):
        return {key: filled(one, version) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, version) for one in value]
    return version if value == "VERSION" else value


def publish(client: TestClient) -> int:
    """Publishes acme/x anew, with two versions; its alias prod was on the newer and is on the older now. Returns the newer."""
    path, root = "/v1/adapters/acme/x", bearer("root")
    client.delete(path, headers=root)
    older, newer = (
        int(client.put(path, content=data, params={"alias": "prod"}, headers=root).json()["version"]) for data in (OLDER, PACKAGE)
    )
    assert client.put(f"{path}/aliases/prod", json={"version": older}, headers=root).status_code == 200
    return newer


# The matrix


def test_every_route_has_a_row(guarded: TestClient) -> None:
    assert routes(guarded) == sorted(CALLS) == sorted(map(str, RULES))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_without_a_key_or_with_a_wrong_one(guarded: TestClient, rule: Rule) -> None:
    wrong = [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {key_of('root')}"},
        {"authorization": f"Bearer nobody{key_of('root')[4:]}"},
        {"authorization": f"Bearer {key_of('root')[:-1]}"},
        {"authorization": f"Bearer {key_of('root')}x"},
        {"x-api-key": key_of("root").replace("root.", "admin.")},
        {"x-api-key": "root."},
        {"x-api-key": ""},
        bearer("root") | {"x-api-key": key_of("admin")},
    ]
    for headers in wrong:
        answer = call(guarded, str(rule), headers)
        if rule.scope is None:
            assert answer.status_code == CALLS[str(rule)][1]
        else:
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_scope_alone(guarded: TestClient, rule: Rule, held: str) -> None:
    version = publish(guarded)
    answer = call(guarded, str(rule), bearer(held), version=version)
    allowed = rule.scope in (None, held) or held == "admin" or (rule.catalogue and held == "publish")
    assert answer.status_code == (CALLS[str(rule)][1] if allowed else 403), answer.text
    assert call(guarded, str(rule), {"x-api-key": key_of("root")}, version=publish(guarded)).status_code == CALLS[str(rule)][1]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_key_of_another_namespace(guarded: TestClient, rule: Rule) -> None:
    version = publish(guarded)
    answer = call(guarded, str(rule), bearer("foreign"), version=version)
    if rule.upload:
        error(answer, 403, "forbidden")
    elif "{name" in rule.path or "{model" in rule.path:
        assert answer.status_code == 404
    elif rule.method == "POST":  # the name is in the body
        error(answer, 404, "model_not_found")
    else:
        assert answer.status_code == CALLS[str(rule)][1]


def test_the_sentences(guarded: TestClient) -> None:
    needed = error(guarded.get("/v1/models"), 401, "unauthorized")
    assert needed["message"] == "An API key is needed: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'."
    unknown = error(guarded.get("/v1/models", headers={"x-api-key": "a.b"}), 401, "unauthorized")
    assert unknown["message"] == "The API key is not one that this server knows: is it whole, and still in its keys file?"
    forbidden = error(guarded.get("/metrics", headers=bearer("predict")), 403, "forbidden")
    assert forbidden["message"] == "The API key 'predict' may not GET /metrics: that needs the scope admin, and it has predict."
    foreign = error(guarded.put(f"/v1/adapters/{HIDDEN}", headers=bearer("publish"), content=b"x"), 403, "forbidden")
    assert foreign["message"] == "The API key 'publish' may not publish under this name: its names are acme/*, mine."
    hub = guarded.post("/models/acme/x", json={"inputs": "t1"})
    assert hub.json() == {"error": needed["message"], "error_type": "unauthorized"}


def test_what_is_no_route_needs_no_key(guarded: TestClient) -> None:
    error(guarded.get("/nowhere"), 404, "not_found")
    error(guarded.patch("/v1/predict"), 405, "http_error")


def test_without_keys_every_caller_is_local(client: TestClient) -> None:
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/adapters/spam", headers={"x-api-key": "whatever"}).status_code == 200


def test_a_refusal_comes_before_the_body(guarded: TestClient) -> None:
    def body() -> Iterator[bytes]:
        read.append(1)
        yield b"x"

    read: list[int] = []
    answer = guarded.put("/v1/adapters/acme/x", content=body(), headers={"transfer-encoding": "chunked"})
    assert (answer.status_code, answer.headers["connection"]) == (401, "close")
    large = guarded.put("/v1/adapters/acme/x", content=b"x" * 100_000)
    assert (large.status_code, large.headers["connection"]) == (401, "close")
    assert "connection" not in guarded.post("/v1/predict", json={}).headers


# Names that a caller may not know of


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/adapters/{}"),
        ("DELETE", "/v1/adapters/{}"),
        ("DELETE", "/v1/adapters/{}/versions/1"),
        ("GET", "/v1/adapters/{}/versions/1/package"),
        ("PUT", "/v1/adapters/{}/aliases/prod"),
        ("GET", "/v1/models/{}"),
        ("GET", "/models/{}"),
        ("GET", "/models/{}/health"),
        ("POST", "/models/{}"),
        ("GET", "/v1/models/{}@1"),
        ("GET", "/v1/models/stack(acme/x, {})"),
        ("GET", "/v1/models/acme/x%23{}"),
        ("POST", "/models/average(acme/x:0.5, {}:0.5)"),
    ],
)
def test_a_hidden_name_is_as_good_as_unknown(guarded: TestClient, method: str, path: str) -> None:
    """Byte for byte what the key is told of a name that does not exist, which is what a key that sees everything is told of that."""
    publish(guarded)
    body = {"json": {"version": 1} if "aliases" in path else {"inputs": "t1"}} if method in ("PUT", "POST") else {}
    key = bearer("publish") if method in ("PUT", "DELETE") or path.endswith("package") else bearer("predict")
    unknown = HIDDEN.replace("secret", "nobody")  # as long
    hidden = guarded.request(method, path.format(HIDDEN), headers=key, **body)
    nobody = guarded.request(method, path.format(unknown), headers=key, **body)
    truly = guarded.request(method, path.format(unknown), headers=bearer("root"), **body)
    assert hidden.status_code == 404
    assert hidden.content.replace(b"secret", b"nobody") == nobody.content == truly.content
    assert set(hidden.headers) == set(nobody.headers) == set(truly.headers)


def test_model_strings_of_a_caller() -> None:
    caller = Caller("k", patterns=("acme/*", "mine"))
    for model in ("acme/x", "mine@3", "base", "stack(acme/x, mine)", "fuse[acme/f](acme/x, mine@prod)#acme/x", "acme/x@sha256:" + "0" * 64):
        check_model(caller, model)
    for model in (
        "acme",
        "acmes/x",
        "mine2",
        "stack(acme/x, o/x)",
        "fuse[o/x](acme/x, mine)",
        "acme/x#o/x",
        "parallel(mine, stack(mine, o/x))",
    ):
        with pytest.raises(NotFound, match=r"^There is no adapter '[a-z0-9/]+' in the store\.$"):
            check_model(caller, model)
    with pytest.raises(InvalidName):
        check_model(caller, "stack(")
    with pytest.raises(NotFound):
        check_name(caller, "ACME/x")


@given(st.text(max_size=60))
def test_any_model_string_is_seen_or_refused(model: str) -> None:
    caller = Caller("k", patterns=("acme/*",))
    try:
        check_model(caller, model)
    except (NotFound, InvalidName) as refused:
        assert "\n" not in str(refused)  # noqa: PT017


# The rules and the routes


def guard_of(*paths: tuple[str, str], rules: tuple[Rule, ...]) -> Guard:
    app = FastAPI(openapi_url=None)
    for method, path in paths:
        app.add_api_route(path, lambda: None, methods=[method])
    return Guard(app.routes, SimpleNamespace(), rules)  # type: ignore[arg-type]


def test_a_route_without_a_rule_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="GET /b has no rule of access of its own: add one to RULES"):
        guard_of(("GET", "/a"), ("GET", "/b"), rules=(Rule("GET", "/a", None),))
    with pytest.raises(RuntimeError, match="POST /a has no rule"):
        guard_of(("GET", "/a"), ("POST", "/a"), rules=(Rule("GET", "/a", None),))


def test_a_rule_without_a_route_or_twice_does_not_start() -> None:
    rule = Rule("GET", "/a", None)
    with pytest.raises(RuntimeError, match="The rule of access for GET /b is for no route"):
        guard_of(("GET", "/a"), rules=(rule, Rule("GET", "/b", None)))
    with pytest.raises(RuntimeError, match="A route has two rules"):
        guard_of(("GET", "/a"), rules=(rule, Rule("GET", "/a", "admin")))
    with pytest.raises(RuntimeError, match="GET /a has no rule of access of its own"):
        guard_of(("GET", "/a"), ("GET", "/a"), rules=(rule,))


def test_a_socket_or_a_mount_does_not_start() -> None:
    app = FastAPI(openapi_url=None)
    app.mount("/static", FastAPI())
    with pytest.raises(RuntimeError, match="is not a route that a rule of access could be for"):
        Guard(app.routes, SimpleNamespace(), ())  # type: ignore[arg-type]


PATHS = st.lists(
    st.sampled_from(
        ["v1", "adapters", "models", "a", "acme", "versions", "1", "package", "aliases", "prod", "", "..", "health", "%2F", "\n", "docs"]
    ),
    max_size=7,
).map(lambda parts: "/" + "/".join(parts))


@given(st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "get"]), PATHS)
def test_the_guard_matches_what_the_router_matches(client: TestClient, method: str, path: str) -> None:
    """The rule that is enforced is that of the route which answers, whatever the path."""
    guard = Guard(client.app.routes, client.app.state.services.access)
    scope = {"type": "http", "method": method, "path": path, "headers": [], "root_path": "", "query_string": b""}
    found = guard.match(dict(scope))
    full = [one for one in iter_route_contexts(client.app.routes) if str(one.matches(dict(scope))[0]) == "Match.FULL"]
    assert (found is None) == (not full)
    if found is not None:
        rule, parameters = found
        assert rule.path == full[0].path
        assert parameters == full[0].matches(dict(scope))[1]["path_params"]


# Terms and notes


def request_of(headers: dict[str, str], caller: Caller | None) -> Any:
    scope: dict[str, Any] = {}
    state_of(scope).caller = caller
    app = SimpleNamespace(state=SimpleNamespace(services=SimpleNamespace(settings=SimpleNamespace(cold="wait", request_timeout=0.0))))
    return SimpleNamespace(scope=scope, headers=headers, url=SimpleNamespace(path="/x"), app=app)


def test_terms() -> None:
    caller = Caller("acme-ci")
    drawn = [terms(request) for request in (request_of({}, LOCAL), request_of({}, LOCAL))]
    assert drawn == [Terms(LOCAL, one.key, "wait") for one in drawn]
    assert drawn[0].key != drawn[1].key, "each request draws anew where nothing says who asks"
    assert terms(request_of({}, caller)) == Terms(caller, "acme-ci", "wait")
    assert terms(request_of({"x-turret-key": "user 7", "x-turret-cold": "refuse"}, caller)) == Terms(caller, "user 7", "refuse")
    assert terms(request_of({"x-turret-key": "~" * 256}, LOCAL)).key == "~" * 256
    for headers in (
        {"x-turret-key": ""},
        {"x-turret-key": "x" * 257},
        {"x-turret-key": "ü"},
        {"x-turret-key": "a\tb"},
        {"x-turret-cold": "Wait"},
        {"x-turret-timeout-ms": "0"},
        {"x-turret-timeout-ms": "-1"},
        {"x-turret-timeout-ms": "1.5"},
        {"x-turret-timeout-ms": "1e3"},
        {"x-turret-timeout-ms": ""},
        {"x-turret-timeout-ms": "1234567890"},
    ):
        with pytest.raises(ApiError, match=next(iter(headers))) as refused:
            terms(request_of(headers, LOCAL))
        assert (refused.value.status, refused.value.code) == (400, "invalid_header")


def test_a_route_without_a_caller_gets_no_terms() -> None:
    with pytest.raises(RuntimeError, match="no caller"):
        terms(request_of({}, None))


def test_notes_are_the_request_s_own() -> None:
    one, other = request_of({}, LOCAL), request_of({}, LOCAL)
    note(one, digest="sha256:1")
    assert (state_of(one.scope), state_of(other.scope)) == (State(LOCAL, {"digest": "sha256:1"}), State(LOCAL))


def test_a_caller_reaches_the_handlers() -> None:
    control = Control(None, Quotas(), None, Audit())  # type: ignore[arg-type]
    guard = Guard([], control, ())
    scope: dict[str, Any] = {"headers": []}
    guard.admit(scope, Rule("GET", "/v1/adapters/{name:path}", "predict"), {"name": "x"})
    assert state_of(scope) == State(LOCAL, {"name": "x"})
