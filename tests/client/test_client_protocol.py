"""The sans-IO half: what is asked, and what an answer means. No socket, no httpx."""

import base64
import json
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turret_client import errors, names, protocol
from turret_client.answers import Response, failure, package_digest, parse, parse_embeddings
from turret_client.results import Array, Entity, Label, Predictions
from turret_client.upload import Body

BODY = Body("application/octet-stream", (b"bytes",))


def document(request: protocol.Request) -> Any:
    assert isinstance(request.content, bytes)
    assert request.headers["content-type"] == "application/json"
    return json.loads(request.content)


def predictions(*rows: dict[str, Any]) -> Predictions:
    return parse(Predictions, Response(200, content=json.dumps({"results": rows}).encode()))


# Requests.


@pytest.mark.parametrize(
    "inputs",
    ["text", {"text": "a", "text_pair": "b"}, [101, 7, 102], ["a", "b"], [[101, 102], [101, 7, 102]], [{"text": "a"}, "b"], ("a", "b")],
)
def test_predict_sends_inputs_as_they_are(inputs: Any) -> None:
    request = protocol.predict("spam@3", inputs).request
    assert (request.method, request.path, request.idempotent) == ("POST", "/v1/predict", True)
    assert document(request) == {"model": "spam@3", "inputs": json.loads(json.dumps(inputs)), "output": "decoded"}


def test_predict_with_parameters_output_and_fan_out() -> None:
    request = protocol.predict(("spam", "topic"), "text", {"top_k": 2}, "logits").request
    assert document(request) == {"model": ["spam", "topic"], "inputs": "text", "output": "logits", "parameters": {"top_k": 2}}


def test_predict_many() -> None:
    rows: list[protocol.Row] = [{"model": "spam", "inputs": "a"}, {"model": "stack(a, b)", "inputs": "b", "parameters": {"top_k": 1}}]
    assert document(protocol.predict_many(rows).request) == {"requests": rows}


def test_embed_asks_for_base64() -> None:
    assert document(protocol.embed(["a"], "base", 8).request) == {
        "model": "base",
        "input": ["a"],
        "encoding_format": "base64",
        "dimensions": 8,
    }
    assert "dimensions" not in document(protocol.embed("a", "base").request)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", "\ud800"])
def test_what_is_not_json_is_refused_before_sending(value: object) -> None:
    with pytest.raises(errors.InvalidArgument, match="JSON"):
        protocol.predict("spam", "text", {"x": value})


def test_push() -> None:
    request = protocol.push("acme/spam", BODY, alias="prod").request
    assert (request.method, request.path, request.params) == ("PUT", "/v1/adapters/acme/spam", {"alias": "prod"})
    assert request.headers == {"content-type": "application/octet-stream"}
    assert request.content is BODY
    assert request.idempotent


def test_push_names_the_members_of_a_fusion() -> None:
    request = protocol.push("mix", BODY, members={"mnli": "acme/mnli@3", "a=b": "ab"}).request
    assert request.params == {"member": ["mnli=acme/mnli@3", "a=b=ab"]}
    with pytest.raises(errors.InvalidArgument, match="No Name"):
        protocol.push("mix", BODY, members={"mnli": "No Name"})


def test_push_of_a_new_name_is_not_repeated() -> None:
    request = protocol.push("spam", BODY, if_none_match=True).request
    assert request.headers["if-none-match"] == "*"
    assert not request.idempotent


def test_paths_of_the_other_operations() -> None:
    assert protocol.list_page(task="t", limit=5, cursor="c").request.params == {"task": "t", "limit": "5", "cursor": "c"}
    assert protocol.list_page().request.params == {}
    assert protocol.show("spam").request.path == "/v1/adapters/spam"
    assert protocol.package("a/b", "prod").path == "/v1/adapters/a/b/versions/prod/package"
    assert protocol.package("a", 3).headers == {"accept-encoding": "identity"}
    assert protocol.delete("spam").request.path == "/v1/adapters/spam"
    assert protocol.delete("spam", 2).request.path == "/v1/adapters/spam/versions/2"
    assert not protocol.delete("spam").request.idempotent
    moved = protocol.set_alias("spam", "prod", 3).request
    assert (moved.method, moved.path, document(moved)) == ("PUT", "/v1/adapters/spam/aliases/prod", {"version": 3})
    assert (protocol.models().request.path, protocol.alive().request.path, protocol.ready().request.path) == (
        "/v1/models",
        "/healthz",
        "/readyz",
    )


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("spam", ("spam", None)),
        ("acme/spam@3", ("acme/spam", "3")),
        ("spam@prod", ("spam", "prod")),
        ("s@sha256:" + "a" * 64, ("s", "sha256:" + "a" * 64)),
    ],
)
def test_references(reference: str, parts: tuple[str, str | None]) -> None:
    assert names.split_reference(reference) == parts


@pytest.mark.parametrize(
    "reference", ["", "..", "a/../b", "a/b/c", "Spam", "a b", "a@", "a@b/c", "a@..", "a@sha256:12", "/a", "a/", "a\n", "x" * 65]
)
def test_references_that_could_lead_elsewhere(reference: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        names.split_reference(reference)


@given(st.text())
def test_any_name_is_refused_or_stays_below_the_adapters(name: str) -> None:
    try:
        path = names.adapter_path(name)
    except errors.InvalidArgument:
        return
    assert path == f"/v1/adapters/{name}"
    assert not {"..", ".", ""} & set(name.split("/"))
    assert name.count("/") <= 1


# Answers.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (412, errors.Conflict),
        (413, errors.TooLarge),
        (418, errors.BadRequest),
        (422, errors.Unprocessable),
        (429, errors.Overloaded),
        (500, errors.ServerError),
        (502, errors.ServerError),
        (503, errors.Unavailable),
        (504, errors.DeadlineExceeded),
        (307, errors.UnexpectedResponse),
    ],
)
def test_statuses(status: int, kind: type[errors.TurretError]) -> None:
    body = b'{"error": {"message": "Why.", "type": "t", "param": "p", "code": "c"}}'
    error = failure(Response(status, {"x-request-id": "r1", "retry-after": "2"}, body))
    assert type(error) is kind
    assert (error.status, error.message, error.type, error.param, error.code) == (status, "Why.", "t", "p", "c")
    assert (error.request_id, error.retry_after, str(error)) == ("r1", 2.0, "Why.")


def test_other_envelopes_and_none() -> None:
    assert failure(Response(422, content=b'{"error": "Too long.", "error_type": "Validation"}')).message == "Too long."
    for body in (b"", b"<html>", b"[1]", b'{"error": 3}', b'{"detail": []}', b"[" * 100_000, b'"\xff"'):
        assert failure(Response(502, content=body)).message == "The server answered 502 (Bad Gateway) without saying why."
    assert failure(Response(599)).message == "The server answered 599 without saying why."
    assert "https://elsewhere" in failure(Response(301, {"location": "https://elsewhere/"})).message


@given(st.integers(300, 599), st.binary(), st.text())
def test_any_failure_has_a_sentence(status: int, body: bytes, retry_after: str) -> None:
    error = failure(Response(status, {"retry-after": retry_after}, body), datetime(2026, 1, 1, tzinfo=UTC))
    assert isinstance(error, errors.TurretError)
    assert error.message


def test_labels_entities_vectors_and_arrays_are_typed() -> None:
    entity = {"score": 0.5, "word": "Ada", "start": 0, "end": 3}
    rows = predictions(
        {
            "model": "a@1",
            "digest": "d",
            "task": "text-classification",
            "output": [{"label": "x", "score": 1}],
            "usage": {"input_tokens": 3},
        },
        {"model": "b", "output": [entity | {"entity_group": "PER"}]},
        {"model": "c", "output": [entity | {"entity": "B-PER", "index": 1}]},
        {"model": "d", "output": [0.5, 1.5]},
        {"model": "e", "output": {"shape": [1, 2], "data": [[1, 2]]}},
        {"model": "f", "output": {"answer": "42", "score": 1}},
        {"model": "g", "output": []},
    )
    assert rows[0].output == [Label(label="x", score=1.0)]
    assert rows[0].usage is not None
    assert (rows[0].usage.input_tokens, rows[0].usage.truncated) == (3, False)
    assert rows[1].output == [Entity(entity_group="PER", score=0.5, word="Ada", start=0, end=3)]
    assert rows[2].output == [Entity(entity="B-PER", index=1, score=0.5, word="Ada", start=0, end=3)]
    assert [rows[index].output[0].name for index in (1, 2)] == ["PER", "B-PER"]  # type: ignore[index, union-attr]
    assert rows[3].output == [0.5, 1.5]
    assert rows[4].output == Array(shape=[1, 2], data=[[1, 2]])
    assert [row.output for row in rows[5:]] == [{"answer": "42", "score": 1}, []]
    assert len(rows) == len(list(rows)) == 7
    assert rows.errors == ()


def test_a_row_that_failed_raises_when_it_is_read_and_only_then() -> None:
    rows = predictions({"model": "nope", "error": {"message": "No adapter 'nope'.", "code": "not_found"}}, {"model": "a", "output": [1.0]})
    assert rows[1].output == [1.0]
    assert [error.message for error in rows.errors] == ["No adapter 'nope'."]
    with pytest.raises(errors.RowFailed, match=r"No adapter 'nope'\.") as caught:
        _ = rows[0].output
    assert caught.value.code == "not_found"


def test_fields_of_a_newer_server_are_kept() -> None:
    rows = predictions({"model": "a", "output": [{"label": "x", "score": 1, "explain": 5}], "attention": [1]})
    assert rows[0].model_extra == {"attention": [1]}
    assert rows.model_dump(mode="json", by_alias=True, exclude_unset=True)["results"][0]["output"][0]["explain"] == 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"results": [{"output": [{"label": "x", "score": null}]}]}',
        b'{"results": [{"model": 5}]}',
        b'{"results": \xff}',
    ],
)
def test_broken_answers_are_unexpected(content: bytes) -> None:
    with pytest.raises(errors.UnexpectedResponse, match="not one of a Turret server") as caught:
        parse(Predictions, Response(200, {"x-request-id": "r"}, content))
    assert (caught.value.status, caught.value.request_id) == (200, "r")


@given(st.lists(st.lists(st.floats(width=32), max_size=5), max_size=4), st.randoms())
def test_embeddings_come_in_the_order_of_the_inputs(vectors: list[list[float]], random: Any) -> None:
    data = [{"index": i, "embedding": base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode()} for i, v in enumerate(vectors)]
    random.shuffle(data)
    answer = parse_embeddings(Response(200, content=json.dumps({"model": "m", "data": data, "usage": {"prompt_tokens": 4}}).encode()))
    assert repr(list(answer.vectors)) == repr(vectors)
    assert (answer.model, answer.prompt_tokens) == ("m", 4)


def test_embeddings_as_numbers_and_as_nonsense() -> None:
    def answer(embedding: object) -> Response:
        return Response(200, content=json.dumps({"data": [{"index": 0, "embedding": embedding}]}).encode())

    assert parse_embeddings(answer([1, 2.5])).vectors == ([1.0, 2.5],)
    for nonsense in ("é", "a", "AAA=", "!!!!"):
        with pytest.raises(errors.UnexpectedResponse, match="float32"):
            parse_embeddings(answer(nonsense))


def test_a_package_comes_with_its_digest() -> None:
    digest = "sha256:" + "0" * 64
    assert package_digest(Response(200, {"etag": f'"{digest}"'})) == digest
    assert package_digest(Response(200, {"etag": f'W/"{digest}"'})) == digest
    for etag in ("", digest, '"abc"', f'"{digest}-gzip"'):
        with pytest.raises(errors.UnexpectedResponse, match="ETag"):
            package_digest(Response(200, {"etag": etag}))
    with pytest.raises(errors.NotFound):
        package_digest(Response(404))


def test_readiness_is_an_answer_not_an_error() -> None:
    ready = protocol.ready()
    assert ready.parse(Response(200)).ready
    health = ready.parse(Response(503, content=b'{"error": {"message": "The store\\ncannot be reached."}}'))
    assert (health.alive, health.ready, health.detail) == (True, False, "The store cannot be reached.")
