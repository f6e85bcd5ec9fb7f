"""Who may call which route: one table, checked against the app's routes at the start, and the guard that enforces it.

The guard runs before any byte of a body is read. It knows routes, callers and the names in paths; names in bodies are the router's.
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.routing import iter_route_contexts
from starlette.routing import Match, Route
from starlette.types import Scope as Called

from server.access.control import Control
from server.access.keys import presented
from server.access.visibility import check_model, check_name
from server.core import LOCAL, Caller, Scope
from server.errors import ApiError


@dataclass(frozen=True, slots=True)
class Rule:
    """What a caller must hold to call a route: `scope`, or nothing where it is None (public). Who publishes may also read the catalogue.

    changes: what was called is written to the audit log. upload: the body is a package, and the name in the path need not exist.
    catalogue: it reads what is published.
    """

    method: str
    path: str
    scope: Scope | None
    changes: bool = False
    upload: bool = False
    catalogue: bool = False

    def allows(self, caller: Caller) -> bool:
        """Whether a caller may call this."""
        return self.scope is None or caller.may(self.scope) or (self.catalogue and caller.may("publish"))

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


NAME = "/v1/adapters/{name:path}"

RULES = (
    Rule("GET", "/healthz", None),
    Rule("GET", "/readyz", None),
    Rule("GET", "/docs", None),
    Rule("GET", "/docs/oauth2-redirect", None),
    Rule("GET", "/openapi.json", None),
    Rule("GET", "/metrics", "admin"),
    Rule("POST", "/v1/predict", "predict"),
    Rule("POST", "/v1/embeddings", "predict"),
    Rule("POST", "/models/{model:path}", "predict"),
    Rule("GET", "/models/{model:path}", "predict"),
    Rule("GET", "/models/{model:path}/health", "predict"),
    Rule("GET", "/v1/models", "predict", catalogue=True),
    Rule("GET", "/v1/models/{model:path}", "predict", catalogue=True),
    Rule("GET", "/v1/adapters", "predict", catalogue=True),
    Rule("GET", NAME, "predict", catalogue=True),
    Rule("GET", f"{NAME}/versions/{{version}}/package", "publish"),
    Rule("PUT", NAME, "publish", changes=True, upload=True),
    Rule("DELETE", NAME, "publish", changes=True),
    Rule("DELETE", f"{NAME}/versions/{{version}}", "publish", changes=True),
    Rule("PUT", f"{NAME}/aliases/{{alias}}", "publish", changes=True),
    Rule("DELETE", f"{NAME}/aliases/{{alias}}", "publish", changes=True),
    Rule("POST", f"{NAME}/aliases/{{alias}}/rollback", "publish", changes=True),
    Rule("POST", f"{NAME}/load", "admin", changes=True),
    Rule("POST", f"{NAME}/unload", "admin", changes=True),
    Rule("POST", "/v1/changes", "publish", changes=True),
    Rule("GET", "/v1/changes", "publish"),
)


@dataclass(slots=True)
class State:
    """What the guard leaves in a request's scope: who calls (None: not known, or on a public route) and notes for the audit log.

    `lot` is what a request without a key of its own draws the versions of weighted aliases by: all of its rows alike. `began` is when
    its head had come, as `time.perf_counter()` tells.
    """

    caller: Caller | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    lot: str = field(default_factory=lambda: f"{random.getrandbits(64):016x}", compare=False)
    began: float = field(default_factory=time.perf_counter, compare=False)


def state_of(scope: Any) -> State:
    """The guard's part of a request's state."""
    states: dict[str, Any] = scope.setdefault("state", {})
    state: State | None = states.get("turret")
    if state is None:
        state = states["turret"] = State()
    return state


@dataclass(frozen=True, slots=True)
class Place:
    """A route as requests are matched with it, and its rule."""

    rule: Rule
    route: Route
    methods: frozenset[str]


class Guard:
    """Enforces the rules of an app's routes. Raises RuntimeError where a route has no rule, several, or a rule has no route."""

    def __init__(self, routes: Sequence[Any], control: Control, rules: Iterable[Rule] = RULES) -> None:
        self._control = control
        self._places = list(_places(routes, list(rules)))
        self._literal = {
            (method, place.rule.path): place
            for place in reversed(self._places)
            for method in place.methods
            if "{" not in place.rule.path and self._first(method, place.rule.path) is place
        }

    def match(self, scope: Called) -> tuple[Rule, dict[str, str]] | None:
        """The rule of the route that will answer, and the path's parameters; None where no route will. First come, as the router does."""
        place = None if scope.get("root_path") else self._literal.get((scope["method"], scope["path"]))
        if place is not None:
            return place.rule, {}
        for place in self._places:
            if scope["method"] in place.methods:
                match, found = place.route.matches(scope)
                if match is Match.FULL:
                    return place.rule, found["path_params"]
        return None

    def _first(self, method: str, path: str) -> Place | None:
        """The first place that answers a path without parameters."""
        scope = {"type": "http", "method": method, "path": path}
        return next((place for place in self._places if method in place.methods and place.route.matches(scope)[0] is Match.FULL), None)

    def admit(self, scope: Called, rule: Rule, parameters: dict[str, str]) -> None:
        """Leaves the caller in the scope; raises ApiError, NotFound or QuotaExceeded where it may not call this."""
        state = state_of(scope)
        state.notes.update({key: value for key, value in parameters.items() if key in ("name", "version", "alias")})
        if rule.scope is None:
            return
        state.caller = caller = self._caller(scope)
        if not rule.allows(caller):
            held = ", ".join(sorted(caller.scopes))
            route = str(rule).replace(":path}", "}")
            sentence = f"The API key '{caller.name}' may not {route}: that needs the scope {rule.scope}, and it has {held}."
            raise ApiError(403, "forbidden", sentence)
        if rule.upload and not caller.sees(parameters["name"]):
            names = ", ".join(caller.patterns)
            raise ApiError(403, "forbidden", f"The API key '{caller.name}' may not publish under this name: its names are {names}.", "name")
        if "name" in parameters:
            check_name(caller, parameters["name"])
        if "model" in parameters:
            check_model(caller, parameters["model"])
        if rule.scope == "predict":
            self._control.quotas.charge_request(caller)

    def headers(self, scope: Called, rule: Rule) -> list[tuple[bytes, bytes]]:
        """What is left of the caller's quotas, for the answer's headers."""
        caller = state_of(scope).caller
        return [] if caller is None or rule.scope != "predict" else self._control.quotas.headers(caller)

    def _caller(self, scope: Called) -> Caller:
        keys = self._control.keys
        if keys is None:
            return LOCAL
        caller = keys.authenticate(scope["headers"])
        if caller is not None:
            return caller
        if presented(scope["headers"]) is None:
            raise ApiError(401, "unauthorized", "An API key is needed: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.")
        raise ApiError(401, "unauthorized", "The API key is not one that this server knows: is it whole, and still in its keys file?")


def _places(routes: Sequence[Any], rules: list[Rule]) -> Iterator[Place]:
    """Every route with its rule, in the order in which the router tries them."""
    unused = {str(rule): rule for rule in rules}
    if len(unused) != len(rules):
        raise RuntimeError("A route has two rules of access.")
    for context in iter_route_contexts(routes):
        path, methods = context.path, frozenset(context.methods or ())
        if path is None or not methods:
            raise RuntimeError(f"{context.route!r} is not a route that a rule of access could be for.")
        for method in sorted(methods - {"HEAD"}):
            rule = unused.pop(f"{method} {path}", None)
            if rule is None:
                raise RuntimeError(f"{method} {path} has no rule of access of its own: add one to RULES in server/api/access.py.")
            head = frozenset({"HEAD"}) if method == "GET" and "HEAD" in methods else frozenset()
            yield Place(rule, Route(path, lambda: None, methods=[method]), head | {method})
    if unused:
        raise RuntimeError(f"The rule of access for {', '.join(unused)} is for no route.")
