"""The `turret` command against the stub server: what it prints where, and its exit codes."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from client_driver import Terminal
from client_stub import DIGEST, PACKAGE, Stub
from turret_client.errors import UnexpectedResponse
from turret_client.predicting import Printer, split_models
from turret_client.render import printable
from turret_client.results import Predictions

# Around the commands.


def test_version(turret: Any) -> None:
    result = turret("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "turret 0.1.0\n", "")


def test_every_command_has_the_common_options(turret: Any) -> None:
    commands = re.findall(r"^  ([a-z]+)  ", turret("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert commands == [
        *("push", "pull", "ls", "show", "predict", "alias", "rollback", "promote", "apply", "history", "rm"),
        *("load", "unload", "keygen", "inspect", "convert"),
    ]
    for command in commands:
        text = turret(command, "--help").stdout
        assert all(option in text for option in ("--url", "--api-key", "--json"))


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["show"],
        ["ls", "--nonsense"],
        ["predict", "spam", "a", "--top-k", "0"],
        ["alias", "spam", "prod", "x"],
        ["predict", "m", "a", "-p", "x"],
    ],
)
def test_wrong_usage(turret: Any, stub: Stub, args: list[str]) -> None:
    result = turret(*args)
    assert (result.exit_code, result.stdout, stub.asked) == (2, "", [])
    assert "Error:" in result.stderr


def test_options_before_or_after_the_command(turret: Any, stub: Stub) -> None:
    for args in (
        ["--url", stub.url, "--api-key", "k", "--json", "show", "spam"],
        ["show", "spam", "--url", stub.url, "--api-key", "k", "--json"],
        ["--url", "http://127.0.0.1:1", "--api-key", "outer", "show", "--json", "--url", stub.url, "--api-key", "k", "spam"],
    ):
        result = turret(*args, TURRET_URL="http://127.0.0.1:2", TURRET_API_KEY="environment")
        assert json.loads(result.stdout)["name"] == "spam"
    assert [asked.headers["authorization"] for asked in stub.asked] == ["Bearer k"] * 3


def test_failures_are_one_sentence(turret: Any, stub: Stub) -> None:
    stub.refuse(403, "This key\nmay not \x1b[31mread.")
    result = turret("show", "spam", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "This key may not \\x1b[31mread.\n")
    result = turret("show", "Not A Name")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    result = turret("ls", "--url", "nowhere")
    assert result.stderr == "'nowhere' is not a server's URL: expected something like http://127.0.0.1:8080.\n"


def test_nobody_there_with_the_real_command(stub: Stub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    result = subprocess.run([sys.executable, "-m", "turret_client", "ls", "--url", url], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"No server can be reached at {url}")


# Each command.


def test_push_a_folder(turret: Any, stub: Stub, adapter: Path) -> None:
    result = turret("push", "acme/spam", adapter, "--alias", "prod", "--new")
    assert result.exit_code == 0
    assert result.stdout == f"acme/spam@3\t{DIGEST}\tpublished\n"
    assert result.stderr == "Warning: no license\\x1b[31m\n"
    assert set(stub.uploads[0]) == {"adapter_config.json", "adapter.safetensors"}
    assert (stub.asked[0].query, stub.asked[0].headers["if-none-match"]) == ("alias=prod", "*")


def test_push_names_members(turret: Any, stub: Stub, adapter: Path) -> None:
    assert turret("push", "acme/mix", adapter, "--member", "mnli=acme/mnli", "--member", "qqp=q@prod", "--alias", "a").exit_code == 0
    assert parse_qsl(stub.asked[0].query) == [("alias", "a"), ("member", "mnli=acme/mnli"), ("member", "qqp=q@prod")]
    for wrong in ("mnli", "=x", "mnli="):
        result = turret("push", "acme/mix", adapter, "--member", wrong)
        assert (result.exit_code, "MEMBER=REFERENCE" in result.stderr) == (2, True)


def test_push_a_file_and_json(turret: Any, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(PACKAGE)
    result = turret("push", "again", tmp_path / "p.safetensors", "--json")
    document = json.loads(result.stdout)
    assert (document["version"], document["is_new"], document["warnings"], result.stderr) == (3, False, ["no license\x1b[31m"], "")
    assert "already published" in turret("push", "again", tmp_path / "p.safetensors").stdout


def test_push_refuses_pickles_and_nothing(turret: Any, stub: Stub, adapter: Path) -> None:
    (adapter / "adapter.safetensors").unlink()
    result = turret("push", "spam", adapter)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"`turret convert {adapter} FILE` (offline)" in result.stderr
    (adapter / "optimizer.bin").unlink()
    assert "holds no adapter" in turret("push", "spam", adapter).stderr
    assert "There is no file or folder" in turret("push", "spam", adapter / "gone").stderr
    assert stub.asked == []


def test_push_shows_its_progress_on_a_terminal_only(
    turret: Any, stub: Stub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("turret_client.render.sys.stderr", screen)
    from turret_client.render import transfer

    with transfer("pushing spam") as progress:
        assert progress is not None
        progress(500_000, 1_000_000)
    assert "pushing spam" in screen.getvalue()


def test_pull(turret: Any, stub: Stub, tmp_path: Path) -> None:
    target = tmp_path / "p.safetensors"
    result = turret("pull", "spam@prod", target)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{target}\t{DIGEST}\t{len(PACKAGE)}\n", "")
    assert target.read_bytes() == PACKAGE
    assert json.loads(turret("pull", "spam", target, "--json").stdout) == {"file": str(target), "digest": DIGEST, "size": len(PACKAGE)}
    stub.etag = '"sha256:' + "0" * 64 + '"'
    result = turret("pull", "spam", tmp_path / "q")
    assert (result.exit_code, result.stdout, (tmp_path / "q").exists()) == (1, "", False)
    assert "nothing was written" in result.stderr
    assert turret("pull", "spam", tmp_path).exit_code == 1


def test_ls(turret: Any, stub: Stub) -> None:
    result = turret("ls", "--task", "t", "--method", "m", "--namespace", "acme")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [f"acme/a{i}" for i in range(5)]
    assert lines[0][1:] == ["3", "t", "bottleneck", "1234567", "300000", "latest=3 prod=3:90,4:10", "2026-11-24 10:00:00+00:00"]
    assert stub.asked[0].query == "task=t&method=m&namespace=acme"
    document = json.loads(turret("ls", "--json").stdout)
    assert [row["created"] for row in document["adapters"]] == ["2026-11-24T10:00:00Z"] * 5


def test_tables_on_a_terminal(turret: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turret_client import render

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "140")
    render.print_table(("name", "text"), [("[red]a\x1b", render.size(1_234_567)), ("b" * 70, "c" * 70)])
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()]
    assert lines == [["name", "text"], ["[red]a\\x1b", "1.2", "MB"], ["b" * 70, "c" * 59 + "…"]]


def test_no_column_of_a_table_vanishes_on_a_narrow_terminal(turret: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turret_client import render

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    render.print_table(("version", "digest", "size", "by"), [(3, DIGEST, "619.4 kB", "somebody with a long name")])
    heading, row = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert heading.split() == ["version", "digest", "size", "by"]
    assert row.split() == ["3", DIGEST, "619.4", "kB", "somebody", "wi…"]


def test_show(turret: Any) -> None:
    text = turret("show", "acme/spam").stdout
    assert "aliases\tlatest=3 prod=2\n" in text
    assert 'method bottleneck\tmethod="bottleneck" reduction_factor=16\n' in text
    assert f"\n3\t{DIGEST}\t{len(PACKAGE)}\t2026-11-24 10:00:00+00:00\tacme-ci\tacme-release\n" in text
    assert json.loads(turret("show", "acme/spam", "--json").stdout)["counts"] == {"requests": 12}


def test_alias(turret: Any, stub: Stub) -> None:
    assert turret("alias", "acme/spam", "prod", "2").stdout == "acme/spam\tlatest=3 prod=2\n"
    assert (stub.asked[0].path, stub.asked[0].json) == ("/v1/adapters/acme/spam/aliases/prod", {"version": 2})


def test_rm(turret: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert turret("rm", "acme/spam@2", "--yes").stdout == "acme/spam@2\tdeleted\n"
    assert json.loads(turret("rm", "spam", "-y", "--json").stdout) == {"name": "spam", "deleted": [1, 2, 3]}
    assert [asked.path for asked in stub.asked] == ["/v1/adapters/acme/spam/versions/2", "/v1/adapters/spam"]
    assert turret("rm", "spam@prod", "--yes").exit_code == 2
    result = turret("rm", "spam")
    assert (result.exit_code, len(stub.asked)) == (2, 2)
    assert "--yes" in result.stderr


@pytest.mark.parametrize(("answer", "code", "count"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_rm_asks_on_a_terminal(turret: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, count: int) -> None:
    monkeypatch.setattr("turret_client.commands.packages.interactive", lambda: True)
    result = turret("rm", "spam@2", stdin=answer)
    assert (result.exit_code, len(stub.asked)) == (code, count)
    assert "Delete version 2 of spam?" in result.stderr


# Predict.


def test_predict(turret: Any, stub: Stub) -> None:
    result = turret("predict", "spam@3", "free\tcash", "hi", "--top-k", "2", "-p", "truncate=true", "-p", "aggregation_strategy=first")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "free\\tcash\tspam\t0.75\nfree\\tcash\tham\t0.25\nhi\tspam\t0.75\nhi\tham\t0.25\n"
    asked = {"model": "spam@3", "inputs": ["free\tcash", "hi"], "output": "decoded"}
    assert stub.asked[0].json == asked | {"parameters": {"top_k": 2, "truncate": True, "aggregation_strategy": "first"}}


def test_predict_other_outputs(turret: Any) -> None:
    assert turret("predict", "ner", "Ada").stdout == "Ada\tPER\tAda\\tL.\t0\t5\t0.9\n"
    assert turret("predict", "ner-empty", "Ada").stdout == ""
    assert turret("predict", "vectors", "Ada").stdout == "Ada\t[0.5, 1]\n"
    assert turret("predict", "spam", "Ada", "--output", "logits").stdout == 'Ada\t{"shape": [2], "data": [1.5, -1.5]}\n'


def test_predict_fan_out(turret: Any, stub: Stub) -> None:
    result = turret("predict", "stack(a, b), vectors", "one", "two")
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()] == [
        ["stack(a, b)@4", "one"],
        ["stack(a, b)@4", "one"],
        ["vectors@4", "one"],
        ["stack(a, b)@4", "two"],
        ["stack(a, b)@4", "two"],
        ["vectors@4", "two"],
    ]
    assert [(asked.json["model"], asked.json["inputs"]) for asked in stub.asked] == [(["stack(a, b)", "vectors"], ["one", "two"])]


@pytest.mark.parametrize("args", [(), ("-",)])
def test_predict_reads_lines(turret: Any, stub: Stub, args: tuple[str, ...]) -> None:
    result = turret("predict", "vectors", *args, stdin="".join(f"line {i}\r\n\n" for i in range(70)))
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [f"line {i}" for i in range(70)]
    assert [len(asked.json["inputs"]) for asked in stub.asked] == [32, 32, 6]


def test_predict_without_texts(turret: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert turret("predict", "spam", stdin=" \n\n").exit_code == 2
    result = turret("predict", "spam", "-", stdin=b"caf\xe9\n")
    assert (result.exit_code, result.stderr) == (1, "Standard input is not utf-8 text.\n")
    monkeypatch.setattr("turret_client.predicting.interactive", lambda: True)
    assert turret("predict", "spam").exit_code == 2
    assert stub.asked == []


def test_rows_that_fail_do_not_keep_back_the_others(turret: Any) -> None:
    result = turret("predict", "vectors", "a", "too long", "c", "too long")
    assert (result.exit_code, result.stdout) == (1, "a\t[0.5, 1]\nc\t[0.5, 1]\n")
    assert result.stderr == "Text 2, vectors: Nothing for 'too long'.\n"
    result = turret("predict", "vectors,nope", "a")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "vectors@4\ta\t[0.5, 1]\n", "Text 1, nope: Nothing for 'a'.\n")


def test_predict_json(turret: Any) -> None:
    result = turret("predict", "spam", "a", "too long", "--json")
    assert (result.exit_code, result.stderr) == (1, "Text 2, spam: Nothing for 'too long'.\n")
    document = json.loads(result.stdout)
    assert document["results"][0]["output"][0] == {"label": "spam", "score": 0.75}
    assert document["results"][1]["error"]["code"] == "gone"
    assert document["timing"]["total_ms"] == 2.5
    many = json.loads(turret("predict", "vectors", "--json", stdin="x\n" * 40).stdout)
    assert len(many["results"]) == 40


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("stack(a, b),c", ["stack(a, b)", "c"]),
        ("fuse[f](a, stack(b, c)), d@2,", ["fuse[f](a, stack(b, c))", "d@2"]),
        (" a ,,", ["a"]),
    ],
)
def test_models_are_split_outside_of_brackets(text: str, parts: list[str]) -> None:
    assert split_models(text) == parts


def test_a_terminal_gets_one_table_for_each_kind_of_output(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    labels = [{"label": "spam", "score": 0.75}]
    entities = [{"entity": "PER", "word": "Ada", "start": 0, "end": 3, "score": 1}]
    rows = [{"model": model, "output": output} for _ in range(2) for model, output in (("spam", labels), ("ner", entities), ("none", []))]
    printer = Printer(models=3, quiet=False)
    printer.add(["a", "b"], Predictions.model_validate({"results": rows}))
    assert screen.getvalue() == ""
    printer.flush()
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()]
    assert lines == [
        ["model", "text", "label", "score"],
        ["spam", "a", "spam", "0.75"],
        ["spam", "b", "spam", "0.75"],
        ["model", "text", "entity", "word", "start", "end", "score"],
        ["ner", "a", "PER", "Ada", "0", "3", "1"],
        ["ner", "b", "PER", "Ada", "0", "3", "1"],
    ]
    with pytest.raises(UnexpectedResponse, match="6 rows for 1 texts"):
        printer.add(["a"], Predictions.model_validate({"results": rows}))


def test_printable() -> None:
    assert printable("Grüße 👩‍💻 שלום\x1b[2J\n\u202e\ud800") == "Grüße 👩‍💻 שלום\\x1b[2J\\n\\u202e\\ud800"
