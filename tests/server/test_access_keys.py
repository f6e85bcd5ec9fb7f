"""The keys' file and the headers that carry a key: who is who, files that change or break, and that nothing else than told can happen."""

import asyncio
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from callers import bearer, entry, key_of, write
from harness import error, serving
from hypothesis import given
from hypothesis import strategies as st

from adapter_store.errors import BrokenFile
from server.__main__ import serve
from server.access.control import PERIOD, Control
from server.access.keys import MAX_KEY_BYTES, Keys, presented
from server.access.quotas import Limits
from server.core import Caller
from server.settings import Settings

Headers = list[tuple[bytes, bytes]]


def headers_of(name: str) -> Headers:
    return [(b"authorization", f"Bearer {key_of(name)}".encode())]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    ci = entry("acme-ci", "predict", "publish", names=("acme/*", "x"), requests_per_minute=600, tokens_per_minute=100_000, weight=2.5)
    return Keys(write(tmp_path / "keys.toml", ci, entry("root", "admin", weight=1)))


# Who is who


def test_a_key_is_its_caller(keys: Keys) -> None:
    caller = keys.authenticate(headers_of("acme-ci"))
    assert caller == Caller("acme-ci", frozenset({"predict", "publish"}), ("acme/*", "x"), 2.5)
    assert keys.authenticate([(b"x-api-key", key_of("root").encode())]) == Caller("root", frozenset({"admin"}), ("*",), 1.0)
    assert keys.limits() == {"acme-ci": Limits(600, 100_000), "root": Limits()}


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], None),
        ([(b"authorization", b"Bearer a.b")], b"a.b"),
        ([(b"authorization", b"bearer   a.b ")], b"a.b"),
        ([(b"authorization", b"Basic a.b")], None),
        ([(b"authorization", b"a.b")], None),
        ([(b"authorization", b"Bearer")], b""),
        ([(b"x-api-key", b"a.b")], b"a.b"),
        ([(b"x-api-key", b"a.b"), (b"authorization", b"Bearer a.b")], b"a.b"),
        ([(b"x-api-key", b"a.b"), (b"authorization", b"Bearer a.c")], b""),
        ([(b"x-api-key", b"a.b"), (b"x-api-key", b"a.c")], b""),
        ([(b"x-api-key", b"a.b"), (b"authorization", b"Basic dTpw")], b"a.b"),
    ],
)
def test_how_a_key_is_presented(headers: Headers, key: bytes | None) -> None:
    assert presented(headers) == key


def test_keys_that_are_nearly_right(keys: Keys) -> None:
    right = key_of("acme-ci")
    for wrong in (
        right[:-1],
        right + "x",
        right.replace(".", ""),
        right.upper(),
        "root" + right[7:],
        right.replace("acme", "ecma"),
        "acme-ci",
        ".",
    ):
        assert keys.authenticate([(b"x-api-key", wrong.encode())]) is None


def test_comparison_takes_the_same_way_for_unknown_names(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash and one comparison of equal lengths, whether the name is known, unknown or no text at all."""
    compared: list[tuple[int, int]] = []
    monkeypatch.setattr("server.access.keys.hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    for key in (key_of("acme-ci"), "acme-ci.wrong", "nobody.wrong", "", "\xff.x"):
        keys.authenticate([(b"x-api-key", key.encode("latin-1"))])
    assert compared == [(32, 32)] * 5


def test_nobody_has_the_dummy(tmp_path: Path) -> None:
    """Not even a key whose hash the unknown names are compared with would let an unknown name in."""
    keys = Keys(write(tmp_path / "keys.toml"))
    assert keys.authenticate(headers_of("nobody")) is None
    assert keys.authenticate([(b"x-api-key", b"x" * (MAX_KEY_BYTES + 1))]) is None


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"other"]), st.binary(max_size=80))))
def test_any_headers_are_nobody_s(tmp_path_factory: pytest.TempPathFactory, headers: Headers) -> None:
    path = tmp_path_factory.getbasetemp() / "somebody.toml"
    if not path.exists():
        write(path, entry("a", "admin"))
    assert Keys(path).authenticate(headers) is None


# The file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (entry("a", "predict").replace("sha256", "sha512"), "keys.a.sha256: this field is missing"),
        ("[keys.a]\nsha256 = 'secret'\nscopes = ['predict']\nnames = ['*']", "keys.a.sha256: expected the sha256 of the whole key in 64"),
        (entry("a", "predict").upper().replace("SHA256", "sha256").replace("KEYS", "keys"), "keys.A"),
        (entry("a"), "keys.a.scopes: List should have at least 1 item"),
        (entry("a", "write"), "keys.a.scopes.0: Input should be 'predict', 'publish' or 'admin'"),
        (entry("a", "predict", names=()), "keys.a.names: List should have at least 1 item"),
        (entry("a", "predict", names=("acme/*", "acme*")), r"keys.a.names.1: expected a name, a namespace as 'namespace/\*', or '\*'"),
        (entry("a", "predict", names=("[a-z]",)), "keys.a.names.0: expected a name"),
        (entry("a", "predict", requests_per_minute=0), "keys.a.requests_per_minute: Input should be greater than or equal to 1"),
        (entry("a", "predict", requests_per_minute=1.5), "keys.a.requests_per_minute: Input should be a valid integer"),
        (entry("a", "predict", tokens_per_minute="9"), "keys.a.tokens_per_minute: Input should be a valid integer"),
        (entry("a", "predict", weight=0), "keys.a.weight: Input should be greater than 0"),
        ("[keys.a]\nweight = nan", "keys.a"),
        (entry("a", "predict", weigth=1), "keys.a.weigth: there is no field of this name"),
        (entry("a.b", "predict"), "keys.a.sha256: this field is missing"),
        (entry("'a b'", "predict"), "keys.a b: expected letters, digits"),
        (entry("local", "predict"), "keys: the name 'local' stands for callers without a key: choose another"),
        ("keys = []", "keys: Input should be a valid dictionary"),
        (entry("a", "predict") * 2, "it is not TOML: Cannot declare"),
        ("[key.a]", "key: there is no field of this name"),
    ],
)
def test_a_broken_file_is_refused_with_the_field_at_fault(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "keys.toml", text)
    with pytest.raises(BrokenFile, match=f"^The keys file {path} cannot be used: {sentence}") as refused:
        Keys(path)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value), "what stands where a hash should may be a key"


FIELDS = st.sampled_from(["sha256", "scopes", "names", "weight", "requests_per_minute", "tokens_per_minute", "x"])
VALUES = st.sampled_from(
    ["1", "-1", "0.5", "inf", "nan", "true", "''", "'*'", "[]", "['*']", "['predict']", "{}", "1979-05-27", f"'{'0' * 64}'"]
)


@given(st.dictionaries(st.sampled_from(["a", "b-c", "'d e'", "local"]), st.dictionaries(FIELDS, VALUES)) | st.binary(max_size=200))
def test_any_file_is_keys_or_is_refused(tmp_path_factory: pytest.TempPathFactory, made: dict[str, dict[str, str]] | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-keys.toml"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        path.write_text("".join(f"[keys.{name}]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()) for name, fields in made.items()))
    with suppress(BrokenFile):
        Keys(path).authenticate(headers_of("a"))


def test_a_sound_file_made_by_hand(tmp_path: Path) -> None:
    """As a person would make one with sha256sum."""
    key = "me.0123456789"
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = write(tmp_path / "keys.toml", f"[keys.me]\nsha256='{digest}'\nscopes=['admin']\nnames=['*']\nweight=2\n")
    assert Keys(path).authenticate([(b"x-api-key", key.encode())]) == Caller("me", frozenset({"admin"}), ("*",), 2.0)


# A file that changes


def test_keys_come_and_go_with_the_file(keys: Keys) -> None:
    assert not keys.reload_if_changed()
    write(keys.file.path, entry("new", "predict"))
    assert keys.authenticate(headers_of("acme-ci")) is not None
    assert keys.reload_if_changed()
    assert not keys.reload_if_changed()
    assert keys.authenticate(headers_of("acme-ci")) is None
    assert keys.authenticate(headers_of("new")) == Caller("new", frozenset({"predict"}))


def test_a_file_written_twice_within_a_tick_of_the_clock_is_read_twice(tmp_path: Path) -> None:
    """The time of a file that was just written may not change with the next write, so it is not relied on."""
    path = tmp_path / "keys.toml"
    path.write_text(entry("one", "predict"))
    keys = Keys(path)
    path.write_text(entry("two", "predict"))
    assert keys.reload_if_changed()
    assert keys.authenticate(headers_of("two")) is not None


def test_a_file_put_in_its_place_is_read(keys: Keys, tmp_path: Path) -> None:
    """As an editor or a mounted secret does it: another file under the name, of the same size and time."""
    write(tmp_path / "keys.toml", entry("abc", "predict"))
    assert keys.reload_if_changed()
    status = keys.file.path.stat()
    other = write(tmp_path / "other.toml", entry("xyz", "predict"))

    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert other.stat().st_size == status.st_size
    other.replace(keys.file.path)
    assert keys.reload_if_changed()
    assert keys.authenticate(headers_of("xyz")) is not None


@pytest.mark.parametrize("text", ["[keys.acme-ci", "[keys.acme-ci]\n", ""])
def test_the_last_good_keys_stay_while_a_file_is_broken(keys: Keys, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """An empty file is sound and holds no key."""
    write(keys.file.path, text)
    changed = keys.reload_if_changed()
    assert changed == (text == "")
    assert (keys.authenticate(headers_of("root")) is None) == changed
    assert ("What it said before stays in force." in caplog.text) == (not changed)


# In a running server


def test_a_removed_key_stops_on_a_connection_that_is_kept(backbone: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", entry("root", "admin"), entry("leaving", "predict"))
    with serving(backbone, tmp_path / "store", api_keys=path) as client:
        access = client.app.state.services.access

        def broken() -> str:
            metrics = client.get("/metrics", headers=bearer("root")).text
            return next(line for line in metrics.splitlines() if line.startswith('turret_access_file_broken{setting="api-keys"}'))[-3:]

        assert client.get("/v1/models", headers=bearer("leaving")).status_code == 200
        write(path, entry("root", "admin"))
        access.reload_if_changed()
        error(client.get("/v1/models", headers=bearer("leaving")), 401, "unauthorized")
        assert broken() == "0.0"
        write(path, "broken")
        access.reload_if_changed()
        assert broken() == "1.0"
        assert client.get("/v1/models", headers=bearer("root")).status_code == 200
        path.unlink()
        access.reload_if_changed()
        assert client.get("/v1/models", headers=bearer("root")).status_code == 200


def test_the_server_looks_at_the_files_by_itself(backbone: Path, tmp_path: Path) -> None:
    assert PERIOD <= 1
    path = write(tmp_path / "keys.toml", entry("one", "predict"))
    with serving(backbone, tmp_path / "store", api_keys=path) as client:
        write(path, entry("two", "predict"))
        deadline = time.monotonic() + 60
        while client.get("/v1/models", headers=bearer("two")).status_code == 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get("/v1/models", headers=bearer("one")).status_code == 401


def test_a_look_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:

    looks: list[int] = []
    enough = asyncio.Event()

    def look(self: Control) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise MemoryError
        loop.call_soon_threadsafe(enough.set)

    async def watched() -> None:
        watching = asyncio.create_task(Control.open(Settings(backbone="none")).watch())
        await enough.wait()
        watching.cancel()

    monkeypatch.setattr("server.access.control.PERIOD", 0.001)
    monkeypatch.setattr(Control, "reload_if_changed", look)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(watched())
    loop.close()
    assert "could not be looked at" in caplog.text


# Starting


def test_other_addresses_need_keys_or_insecure(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", entry("a", "predict"))
    assert Settings(host="0.0.0.0", api_keys=path).api_keys == path
    assert Settings(host="0.0.0.0", insecure=True).api_keys is None
    with pytest.raises(ValueError, match=r"no API keys are set: bind to 127\.0\.0\.1 or add --api-keys FILE"):
        Settings(host="0.0.0.0")


@pytest.mark.parametrize("setting", ["api_keys", "signers", "audit_log"])
def test_a_file_that_cannot_be_used_ends_the_start(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    assert serve(Settings(backbone="none", store=str(tmp_path / "store"), **{setting: tmp_path})) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("turret-server: The ")
    assert "cannot be" in said
    assert "\n" not in said
    assert not (tmp_path / "store").exists()


def test_signers_are_wired(backbone: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "signers.toml", "")
    with serving(backbone, tmp_path / "store", signers=path) as client:
        trust = client.app.state.services.access.trust
        assert trust.file.path == path
        assert client.put("/v1/adapters/x", content=tiny.adapter(tiny.KINDS["pfeiffer"], None)).status_code == 201
        write(path, "broken")
        client.app.state.services.access.reload_if_changed()
        assert 'turret_access_file_broken{setting="signers"} 1.0' in client.get("/metrics").text
