"""The load test, short: what `make load-test` does for two minutes."""

import json
from dataclasses import replace

import pytest

from tests.endurance.checking import Check
from tests.endurance.churn import Outcome, load_test


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return load_test(tmp_path_factory.mktemp("load"), seconds=10, warm_up=2, size=0.3, sentences=4)


def test_no_request_fails_and_every_answer_is_that_of_its_digest(outcome: Outcome) -> None:
    assert outcome.faults == []
    assert outcome.figures["failed requests"] == 0
    assert outcome.figures["farthest from solo"] <= 1e-4


def test_there_was_churn(outcome: Outcome) -> None:
    figures, operations = outcome.figures, outcome.figures["operations"]
    assert figures["requests"] > 20
    assert figures["versions answered"] > 20
    assert figures["evictions"] > 10
    assert figures["on the device at the end"] <= figures["device bytes"]
    assert operations["publish"] > 60
    assert operations["alias"] + operations["weighted alias"] > 60


def test_the_check_sees_another_version(outcome: Outcome) -> None:
    """An answer under the digest of another version of its kind is a fault."""
    assert outcome.check is not None
    check = Check(outcome.check.solo, outcome.check.timeline, outcome.check.generations)
    one = next(one for one in outcome.exchanges if one.ask.convention == "one" and one.ask.rows[0][0].output == "decoded")
    (part,), digest = one.ask.rows[0][0].parts, json.loads(one.content)["results"][0]["digest"]
    manifest = outcome.fleet.packages[digest].manifest
    other = next(made.digest for made in outcome.fleet.packages.values() if made.manifest == manifest and made.digest != digest)
    check.all([replace(one, content=one.content.replace(digest.encode(), other.encode()))])
    assert any("is off by" in fault for fault in check.faults)
    assert any(f"{part} was answered by" in fault or "the header names" in fault for fault in check.faults)
