"""Package files with manifests that must be refused, as tables: a name and the bytes. The file around the manifest is sound."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from hostile_packages import Table, manifest, refused, with_manifest

from adapter_store.manifest import Manifest

METHODS: dict[str, dict[str, Any]] = {
    "bottleneck": {},
    "lora": {"modules": ["layers.0.q"], "rank": 2, "scaling": 1.0},
    "ia3": {"outputs": ["layers.0.k"]},
    "fusion": {},
    "invertible": {},
    "norms": {"modules": ["layers.0.mh"]},
    "prefix": {"prefix_length": 2},
    "prompt": {"prompt_length": 2, "place": "embeddings"},
}
WRONG: tuple[Any, ...] = ({"x": [[]]}, [[[]]], "\ud800", 10**30, "x" * 70_000, None, -(2**63))


def fields() -> Iterator[tuple[str, str, Callable[[Any], dict[str, Any]]]]:
    """Every field of every model of a manifest: where, its name, and the changed fields of a manifest that hold a value there."""
    definitions: dict[str, Any] = Manifest.model_json_schema()["$defs"]
    for name in Manifest.model_fields:
        yield "manifest", name, lambda value, name=name: {name: value}
    for part in ("backbone", "head"):
        for name in definitions[part.title()]["properties"]:
            yield part, name, lambda value, part=part, name=name: {part: manifest()[part] | {name: value}}
    for definition in definitions.values():
        method = definition["properties"].get("method", {}).get("const")
        for name in definition["properties"] if method else ():
            yield (
                method,
                name,
                lambda value, method=method, name=name: {"methods": {"m": {"method": method} | METHODS[method] | {name: value}}},
            )
    example = {"inputs": "t1", "expected": 1}
    for name in ("output", "tolerance", "parameters"):
        yield "example", name, lambda value, name=name: {"examples": [example | {name: value}]}


def sound(where: str, name: str, value: Any) -> bool:
    """What a field may be, however odd."""
    return where == "example" and ((name == "parameters" and value == WRONG[0]) or (name == "tolerance" and value == WRONG[3]))


def wrong_fields() -> Table:
    """Every field of the manifest with each kind of JSON that it must not be; null only where the field has none."""
    return {
        f"{where}.{name} = {json.dumps(value)[:20]}": data
        for where, name, change in fields()
        for value in WRONG
        if not sound(where, name, value)
        and (value is not None or refused(with_manifest(change(None))))
        and (data := with_manifest(change(value)))
    }


def manifests() -> Table:
    """Manifests that promise what cannot be, or too much of it."""
    pinned = "sha256:" + "0" * 64
    spec = manifest()["backbone"]

    def bottleneck(**config: Any) -> dict[str, Any]:
        return {"methods": {"bottleneck": {"method": "bottleneck"} | config}}

    def lora(**config: Any) -> dict[str, Any]:
        return {"methods": {"lora": {"method": "lora"} | METHODS["lora"] | config}}

    def head(**config: Any) -> dict[str, Any]:
        return {"head": {"type": "classification", "labels": ["a", "b"]} | config}

    def backbone(**config: Any) -> dict[str, Any]:
        return {"backbone": spec | config}

    def example(**config: Any) -> dict[str, Any]:
        return {"examples": [{"inputs": "t1", "expected": 1} | config]}

    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    addresses = [f"layers.{layer}.{name}" for layer in range(1000) for name in ("q", "k", "v", "o", "up", "down")]
    changes: dict[str, dict[str, Any] | str] = {
        "nothing": "",
        "a brace": "{",
        "a list": "[]",
        "null": "null",
        "empty": "{}",
        "deep": "[" * 900,
        "numbers": "[" + "1," * 200_000 + "1]",
        "twice": '{"format": "turret/1", "format": "turret/1"}',
        "another format": {"format": "turret/2"},
        "unknown key": {"pickle": "x"},
        "many unknown keys": {f"k{i}": 0 for i in range(100_000)},
        "5 MB": {"card": "x" * (5 << 20)},
        "a line break in a key": {"a\nb": 1},
        "neither": {"methods": {}, "head": None},
        "a part called head": {"methods": {"head": {"method": "bottleneck"}}},
        "a part called ../x": {"methods": {"../x": {"method": "bottleneck"}}},
        "a part with a line break": {"methods": {"a\nb": {"method": "bottleneck"}}},
        "a method called by a line break": {"methods": {"m": {"method": "a\nb"}}},
        "a long method": {"methods": {"m": {"method": "x" * 1_000_000}}},
        "two of a method": {"methods": {"a": {"method": "bottleneck"}, "b": {"method": "bottleneck"}}},
        "nine parts": {"methods": {f"m{i}": {"method": "bottleneck"} for i in range(9)}},
        "10 million labels": with_labels(10_000_000),
        "a million labels": with_labels(1_000_000),
        "65,537 labels": head(labels=[str(i) for i in range(65537)]),
        "labels that are numbers": head(labels=[1] * 60_000),
        "labels that are lists": head(labels=[[]] * 60_000),
        "equal labels": head(labels=["a", "a"]),
        "an empty label": head(labels=["a", ""]),
        "a label of 1 MB": head(labels=["a", "x" * (1 << 20)]),
        "half a label": head(labels=["a", "b", "\udfff"], layers=2, activation="tanh"),
        "a label more": head(labels=["a", "b", "c", "d"]),
        "1000 layers in a head": head(layers=1000),
        "an activation with a line break": head(activation="a\nb"),
        "a vocabulary of 2**62": {"head": {"type": "masked_lm", "vocab_size": 2**62}},
        "a boastful vocabulary": {"head": {"type": "masked_lm", "vocab_size": 1 << 21}},
        "relations": {"head": {"type": "dependency_parsing", "labels": ["a"]}},
        "a factor of 0": bottleneck(reduction_factor=0),
        "a factor of 1e-300": bottleneck(reduction_factor=1e-300),
        "a factor of 0.001": bottleneck(reduction_factor=0.001),
        "many factors": bottleneck(reduction_factor={f"{i:04}": 4 for i in range(9999)}),
        "a factor for one layer": bottleneck(reduction_factor={"0": 4}),
        "factors of texts": bottleneck(reduction_factor={str(i): "x" for i in range(60_000)}),
        "no factor": bottleneck(reduction_factor={}),
        "left out many times": bottleneck(leave_out=[1] * 100_000),
        "left out past the last": bottleneck(leave_out=[4096]),
        "everything left out": bottleneck(leave_out=[0, 1, 2]),
        "a huge Kronecker": bottleneck(phm_layer=True, phm_dim=256, phm_rank=4096),
        "an odd Kronecker": bottleneck(phm_layer=True, phm_dim=7),
        "acts nowhere": bottleneck(output_adapter=False),
        "a scaling of 1e300": bottleneck(scaling=1e300),
        "a scaling that is a word": bottleneck(scaling="huge"),
        "a rank of 4096": lora(rank=4096),
        "a rank of 2**31": lora(rank=2**31),
        "6000 modules": lora(modules=addresses),
        "6000 ranks": lora(modules=addresses, ranks=dict.fromkeys(addresses, 1)),
        "50,000 modules": lora(modules=["layers.0.q"] * 50_000),
        "a module twice": lora(modules=["layers.0.q"] * 2),
        "no module": lora(modules=[]),
        "a module past the last": lora(modules=["layers.7.q"]),
        "a module with a line break": lora(modules=["layers.0.q\n"]),
        "a module of 1 MB": lora(modules=["layers." + "0" * (1 << 20) + ".q"]),
        "a rank of none": lora(ranks={"layers.1.q": 1}),
        "ranks of -1": lora(ranks={"layers.0.q": -1}),
        "a scaling of -1e308": lora(scaling=-1e308),
        "scalings of 1e308": lora(scalings={"layers.0.q": 1e308}),
        "a linear that is none": lora(modules=["layers.0.qkv"]),
        "a prefix of 10**9": {"methods": {"p": {"method": "prefix", "prefix_length": 10**9}}},
        "a prefix of 4096": {"methods": {"p": {"method": "prefix", "prefix_length": 4096}}},
        "a prefix of no group": {"methods": {"p": {"method": "prefix", "prefix_length": 1, "groups": []}}},
        "groups": {"methods": {"p": {"method": "prefix", "prefix_length": 1, "groups": ["self"] * 50_000}}},
        "a group that is not there": {"methods": {"p": {"method": "prefix", "prefix_length": 1, "groups": ["cross"]}}},
        "a prompt anywhere": {"methods": {"p": {"method": "prompt", "prompt_length": 1, "place": "/"}}},
        "norms": {"methods": {"n": {"method": "norms", "modules": ["layers.0.mh"]}}},
        "norms with a line break": {"methods": {"n": {"method": "norms", "modules": ["\n"]}}},
        "a fusion alone": {"methods": {"f": {"method": "fusion"}}},
        "a temperature of 0": {"methods": {"f": {"method": "fusion", "temperature": 0}}},
        "a site twice": {"methods": {"f": {"method": "fusion", "sites": ["mh", "mh"]}}},
        "1024 layers": backbone(num_layers=1024),
        "10**9 layers": backbone(num_layers=10**9),
        "a decoder of 1000 layers": backbone(decoder_layers=1000),
        "a decoder": backbone(decoder_layers=1),
        "a hidden size of 65536": backbone(hidden_size=65536),
        "a hidden size of 10**30": backbone(hidden_size=10**30),
        "a hidden size of 0": backbone(hidden_size=0),
        "another type": backbone(model_type="roberta"),
        "a type with a line break": backbone(model_type="be\nrt"),
        "another embedding size": backbone(embedding_size=16),
        "a linear that bert has not": backbone(linears={"qkv": [32, 3]}),
        "linears that are none": backbone(linears={f"l{i}": [1, 1] for i in range(20_000)}),
        "a linear of 2**40": backbone(linears={"q": [2**40, 1]}),
        "another linear": backbone(linears={"up": [32, 32]}),
        "another fingerprint": backbone(fingerprint=pinned),
        "a fingerprint and a line break": backbone(fingerprint=pinned + "\n"),
        "no fingerprint": backbone(fingerprint="x" * 1_000_000),
        "a source of 1 MB": {"source": {"a": "x" * (1 << 20)}},
        "a source's key of 1 MB": {"source": {"x" * (1 << 20): "a"}},
        "33 sources": {"source": {str(i): "a" for i in range(33)}},
        "65 examples": {"examples": [{"inputs": "t1", "expected": 1}] * 65},
        "a deep example": example(inputs=deep),
        "a wide example": example(expected=[0] * 70_000),
        "a long example": example(inputs="x" * 300_000),
        "an example without answer": {"examples": [{"inputs": "t1"}]},
        "an example of 2**64": example(expected=2**64),
        "half an example": example(inputs="\ud800"),
        "a tolerance of 0": example(tolerance=0),
        "examples of everything": {"examples": [{f"k{i}": 0 for i in range(900)} for _ in range(64)]},
        "another output": example(output="tokens"),
    }
    return {name: with_manifest(change) for name, change in changes.items()}


def with_labels(count: int) -> str:
    """A manifest with very many labels, as text."""
    return '{"format":"turret/1","head":{"type":"classification","labels":[' + '"a",' * count + '"b"]}}'


def compositions() -> Table:
    """Compositions that are none, nest too deeply, name too many or name what is not there."""
    pin = "@sha256:" + "0" * 64
    texts = {
        "nothing": "",
        "the bare backbone's head": "base#a",
        "a brace": "stack(",
        "deep": "stack(" * 1300,
        "10,000 deep": "stack(" * 10_000 + "self" + ")" * 10_000,
        "nine deep": "stack(" * 9 + f"a{pin}" + ")" * 9,
        "not pinned": "stack(a, self)",
        "pinned by a version": "stack(a@1, self)",
        "pinned by nothing": "stack(a@, self)",
        "of strangers": f"stack(a{pin}, self)",
        "70 members": f"stack({', '.join([f'a{pin}'] * 70)}, self)",
        "a head of another": "self#b",
        "fused with nothing": f"fuse[self](a{pin})",
        "weights of nan": "average(self:nan)",
        "weights of 1e308": "average(self:1e308, self:1e308)",
        "no weights": "average(self:0)",
        "weights of 8000 digits": "average(self:" + "9" * 8000 + ")",
        "negative weights": "average(self:-1)",
        "parallel with a head": f"parallel(self, a{pin})",
        "many answers": f"stack({', '.join(['parallel(self, self)'] * 9)})",
        "spaces": " " * 8000 + "!",
        "a line break": "stack(a\nb)",
        "a path": "../../etc/passwd",
        "unicode": "stаck(self)",
        "half a pair": "\ud800",
        "9000 characters": "x" * 9000,
        "at signs": "a@" * 4000,
        "uppercase": f"SELF{pin}",
    }
    own = {name: with_manifest({"composition": text}) for name, text in texts.items()}
    return own | {f"{name}, without a head": with_manifest({"composition": text, "head": None}) for name, text in texts.items()}


TABLES = {table.__name__: table for table in (wrong_fields, manifests, compositions)}
