"""Forms with folders that must be refused, as tables: a name and the files. Each is a good AdapterHub or PEFT folder, broken in one way."""

import json
from typing import Any

import numpy as np
import tiny
from safetensors.numpy import save

Form = list[tuple[str, bytes]]
Change = dict[str, Any]

WIDTH, RANK = 8, 4
LABELS = {"ham": 0, "spam": 1}
CARD = "README.md"


def numbers(shapes: dict[str, tuple[int, ...]]) -> bytes:
    random = np.random.default_rng(0)
    return save({name: random.normal(scale=0.3, size=shape).astype("<f4") for name, shape in shapes.items()})


def adapterhub() -> dict[str, Any]:
    """A Pfeiffer adapter with a head as the library writes it: objects are JSON, bytes are weights."""
    top = {
        "hidden_size": tiny.HIDDEN,
        "model_class": "BertAdapterModel",
        "model_name": "",
        "model_type": "bert",
        "name": "sst",
        "version": "adapters.1.3.0",
    }
    config = {
        "mh_adapter": False,
        "output_adapter": True,
        "reduction_factor": tiny.HIDDEN // WIDTH,
        "non_linearity": "relu",
        "original_ln_before": True,
    }
    config |= {
        "leave_out": [],
        "scaling": 1.0,
        "ln_before": False,
        "ln_after": False,
        "is_parallel": False,
        "use_gating": False,
        "phm_layer": False,
        "phm_dim": 4,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(tiny.LAYERS):
        module = f"bert.encoder.layer.{layer}.output.adapters.sst"
        shapes |= {f"{module}.adapter_down.0.weight": (WIDTH, tiny.HIDDEN), f"{module}.adapter_down.0.bias": (WIDTH,)}
        shapes |= {f"{module}.adapter_up.weight": (tiny.HIDDEN, WIDTH), f"{module}.adapter_up.bias": (tiny.HIDDEN,)}
    head = {
        "head_type": "classification",
        "layers": 1,
        "activation_function": "tanh",
        "bias": True,
        "use_pooler": False,
        "label2id": LABELS,
        "num_labels": 2,
    }
    return {
        "adapter_config.json": top | {"config": config},
        "adapter.safetensors": numbers(shapes),
        "head_config.json": top | {"config": head},
        "model_head.safetensors": numbers({"heads.sst.1.weight": (2, tiny.HIDDEN), "heads.sst.1.bias": (2,)}),
    }


def peft() -> dict[str, Any]:
    """A LoRA as PEFT writes it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(tiny.LAYERS):
        for name in ("query", "value"):
            module = f"base_model.model.bert.encoder.layer.{layer}.attention.self.{name}"
            shapes |= {f"{module}.lora_A.weight": (RANK, tiny.HIDDEN), f"{module}.lora_B.weight": (tiny.HIDDEN, RANK)}
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["query", "value"],
        "task_type": "FEATURE_EXTRACTION",
    }
    return {"adapter_config.json": config, "adapter_model.safetensors": numbers(shapes)}


def form(folder: dict[str, Any]) -> Form:
    """The files of a folder; what is left out is `...`."""
    files = {
        name: value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        for name, value in folder.items()
        if value is not ...
    }
    return list(files.items())


def changed(folder: dict[str, Any], file: str, **change: Any) -> Form:
    return form(folder | {file: folder[file] | change})


def configured(file: str, **change: Any) -> Form:
    """The AdapterHub folder with keys of a config changed."""
    folder = adapterhub()
    return changed(folder, file, config=folder[file]["config"] | change)


ADAPTER, HEAD = "adapter_config.json", "head_config.json"
WRONG: tuple[Any, ...] = ({"x": [[]]}, [[]], "\ud800", "a\nb")
NESTED = "[" * 100 + "]" * 100


def configs() -> dict[str, Form]:
    """Every key of the configs that counts, as what it must not be."""
    table: dict[str, Form] = {}
    hub, lora = adapterhub(), peft()
    for number, wrong in enumerate(WRONG):
        table |= {f"{ADAPTER} config.{key} {number}": configured(ADAPTER, **{key: wrong}) for key in hub[ADAPTER]["config"]}
        free = ("activation_function", "use_pooler", "bias")  # not read in a head of one layer, or read as true
        table |= {f"{HEAD} config.{key} {number}": configured(HEAD, **{key: wrong}) for key in hub[HEAD]["config"] if key not in free}
        table |= {f"{ADAPTER} {key} {number}": changed(hub, ADAPTER, **{key: wrong}) for key in ("name", "config")}
        table |= {f"{HEAD} {key} {number}": changed(hub, HEAD, **{key: wrong}) for key in ("name", "config")}
        table |= {
            f"peft {key} {number}": changed(lora, ADAPTER, **{key: wrong})
            for key in ("peft_type", "lora_alpha", "bias", "task_type", "use_dora", "unknown")
        }
    return table


def extremes() -> dict[str, Form]:
    """Folders that are much, deep, long or slow to read."""
    hub, lora = adapterhub(), peft()
    return {
        "a name of 1 MB": changed(hub, ADAPTER, name="x" * (1 << 20)),
        "another name": changed(hub, ADAPTER, name="other"),
        "no name": changed(hub, ADAPTER, name=""),
        "an empty object": form(hub | {ADAPTER: {}}),
        "a list": form(hub | {ADAPTER: "[]"}),
        "not JSON": form(hub | {ADAPTER: "{"}),
        "duplicate keys": form(hub | {ADAPTER: '{"config": {}, "config": {}}'}),
        "deep": form(hub | {ADAPTER: f'{{"config": {NESTED}}}'}),
        "many values": form(hub | {ADAPTER: '{"config": [' + "0," * 400_000 + "0]}"}),
        "1e999": form(hub | {ADAPTER: '{"hidden_size": 1e999}'}),
        "many digits": form(hub | {ADAPTER: '{"hidden_size": ' + "9" * 5000 + "}"}),
        "not utf-8": form(hub | {ADAPTER: b"\xff\xfe{}"}),
        "a union of many": configured(ADAPTER, architecture="union", configs=["pfeiffer"] * 100_000),
        "a union of unions": configured(ADAPTER, architecture="union", configs=[{"architecture": "union", "configs": []}]),
        "layers left out": configured(ADAPTER, leave_out=[1] * 100_000),
        "layers that are texts": configured(ADAPTER, leave_out=["x"] * 100_000),
        "factors": configured(ADAPTER, reduction_factor={str(i): "x" for i in range(80_000)}),
        "a tiny factor": configured(ADAPTER, reduction_factor=1e-9),
        "a method not served": configured(ADAPTER, architecture="reft"),
        "a preset": changed(hub, ADAPTER, config="pfeiffer+inv"),
        "a scaling of 1e300": configured(ADAPTER, scaling=1e300),
        "100,000 labels": configured(HEAD, label2id={str(i): i for i in range(100_000)}, num_labels=None),
        "10**9 labels": configured(HEAD, label2id=None, num_labels=10**9),
        "labels without ids": configured(HEAD, label2id={"a": 7, "b": 9}),
        "a label of 1 MB": configured(HEAD, label2id={"x" * (1 << 20): 0, "b": 1}),
        "half a label": configured(HEAD, label2id={"\ud800": 0, "b": 1}),
        "1000 layers": configured(HEAD, layers=1000),
        "a head that is none": configured(HEAD, head_type="pickle"),
        "a vocabulary": configured(HEAD, head_type="masked_lm", vocab_size=2**40),
        "another model": changed(hub, ADAPTER, model_type="t5"),
        "another size": changed(hub, ADAPTER, hidden_size=10**9),
        "no config": form(hub | {ADAPTER: ...}),
        "no weights": form(hub | {"adapter.safetensors": ...}),
        "weights that are a pickle": form(hub | {"adapter.safetensors": b"\x80\x04."}),
        "a pickle": form(hub | {"adapter.safetensors": ..., "pytorch_adapter.bin": b"\x80\x04."}),
        "no weights at all": form(hub | {"adapter.safetensors": b""}),
        "weights of zeros": form(hub | {"adapter.safetensors": bytes(1 << 20)}),
        "weights of nothing": form(hub | {"adapter.safetensors": save({})}),
        "other weights": form(hub | {"adapter.safetensors": hub["model_head.safetensors"]}),
        "weights cut off": form(hub | {"adapter.safetensors": hub["adapter.safetensors"][:-4]}),
        "a card alone": form({CARD: "# spam"}),
        "training_config.json alone": form({"training_config.json": {}}),
        "a run of strings": form(
            {
                "training_config.json": {},
                "config.json": {"model_type": "t5", "d_model": 32, "num_layers": 2, "num_heads": "1", "d_kv": 10**9, "d_ff": 8},
                "model.safetensors": save({}),
            }
        ),
        "a run of lists": form(
            {
                "training_config.json": {},
                "config.json": {
                    "model_type": "t5",
                    "d_model": 32,
                    "num_layers": [1],
                    "num_decoder_layers": [1],
                    "num_heads": [0],
                    "d_kv": 10**9,
                    "d_ff": 8,
                },
                "model.safetensors": save({}),
            }
        ),
        "slow patterns": changed(lora, ADAPTER, alpha_pattern={".*" * 20 + "(a+)+" * 4: 1}),
        "1000 patterns": changed(lora, ADAPTER, alpha_pattern={f"x{i}" + "*" * 2: 1 for i in range(1000)}),
        "2000 patterns": changed(lora, ADAPTER, alpha_pattern={f"x{i}": 1 for i in range(2000)}),
        "a pattern of 1 MB": changed(lora, ADAPTER, alpha_pattern={"a" * (1 << 20): 1}),
        "a broken pattern": changed(lora, ADAPTER, alpha_pattern={"(": 1}),
        "an alpha of 10**300": changed(lora, ADAPTER, lora_alpha=10**39),
        "DoRA": changed(lora, ADAPTER, use_dora=True),
        "no peft weights": form(lora | {"adapter_model.safetensors": ...}),
        "a peft pickle": form(lora | {"adapter_model.safetensors": ..., "adapter_model.bin": b"\x80\x04."}),
        "peft weights of nothing": form(lora | {"adapter_model.safetensors": save({})}),
        "peft's embedding": form(
            lora | {"adapter_model.safetensors": numbers({"base_model.model.bert.embeddings.word_embeddings.lora_embedding_A": (4, 60)})}
        ),
        "a layer past the last": form(
            lora
            | {
                "adapter_model.safetensors": numbers(
                    {"base_model.model.bert.encoder.layer.999.attention.self.query.lora_A.weight": (4, 32)}
                )
            }
        ),
        "a vector": form(
            lora
            | {"adapter_model.safetensors": numbers({"base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight": (4,)})}
        ),
        "a prefix of no width": form(
            {ADAPTER: {"peft_type": "PREFIX_TUNING", "num_layers": 3}, "adapter_model.safetensors": numbers({"prompt_embeddings": (4, 0)})}
        ),
        "a setup of nothing": form({"adapter_setup.json": {}}),
        "a deep setup": form({"adapter_setup.json": {"adapter_setup": setup(30)}}),
        "a setup of strangers": form({"adapter_setup.json": {"adapter_setup": setup(2)}}),
        "a setup of itself": form({"adapter_setup.json": {"adapter_setup": {"type": "single", "children": ["."]}}}),
        "a setup with deep heads": form(
            {"adapter_setup.json": {"adapter_setup": setup(1), "head_setup": json.loads("[" * 60 + "]" * 60)}}
            | {f"a/{name}": value for name, value in hub.items()}
        ),
        "300 files": form(hub | {f"x{i}.json": b"{}" for i in range(300)}),
        "a fusion of many": form(
            {
                "adapter_fusion_config.json": {"adapter_names": [f"m{i}" for i in range(50_000)], "name": "m"},
                "model_adapter_fusion.safetensors": save({}),
            }
        ),
        "a fusion of one twice": form(
            {"adapter_fusion_config.json": {"adapter_names": ["m", "m"]}, "model_adapter_fusion.safetensors": save({})}
        ),
    }


def setup(depth: int) -> dict[str, Any]:
    """A block of blocks of one adapter."""
    block: dict[str, Any] = {"type": "single", "children": ["a"]}
    for _ in range(depth):
        block = {"type": "Stack", "children": [block]}
    return block


def names() -> dict[str, Form]:
    """File names that lead somewhere, or are none."""
    bad = (
        "../adapter.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "a/b/c.json",
        "a\\b",
        ".hidden",
        "a/../b.json",
        "x" * 300,
        "ä.json",
        "~/x",
        "a b.json",
        "adapter_config.json/",
        "//x",
        "%2e%2e/x",
    )
    return {f"a file called {name!r:.40}": [*form(adapterhub()), (name, b"{}")] for name in bad} | {
        "a file twice": [*form(adapterhub()), (ADAPTER, b"{}")]
    }


TABLES = {table.__name__: table for table in (configs, extremes, names)}
