"""Configs made by hypothesis: each is refused with one sentence or served with finite numbers, and nothing else happens."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_support import Served

from adapter_store.errors import StoreError
from adapter_store.families import LINEARS
from adapter_store.importers import folder_files, import_folder
from adapter_store.manifest import Manifest
from adapter_store.methods import ACTIVATIONS
from adapter_store.package import TensorData, write_package
from server.publishing import Upload

torch.set_num_threads(1)

# Values that a config may carry, sound and unsound.
_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(-2, 70, allow_nan=False), st.sampled_from(["", "x", "learned", "post_add"])
)
_ACTIVATION = st.sampled_from([*ACTIVATIONS, "prelu", "swiglu", "RELU", ""])
_ADDRESSES = st.lists(
    st.builds(lambda layer, name: f"layers.{layer}.{name}", st.integers(0, 3), st.sampled_from(LINEARS)),
    min_size=1,
    max_size=4,
    unique=True,
)


def _object(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


BOTTLENECK = _object(
    {"method": st.just("bottleneck")},
    mh_adapter=st.booleans(),
    output_adapter=st.booleans(),
    cross_adapter=st.booleans(),
    reduction_factor=st.one_of(
        st.sampled_from([0.5, 1, 2, 3, 6, 8, 100]), st.dictionaries(st.sampled_from(["0", "1", "default", "x"]), st.just(4.0)), _JUNK
    ),
    non_linearity=_ACTIVATION,
    scaling=st.one_of(st.sampled_from([1.0, 0.0, -2.5, "learned", "channel"]), _JUNK),
    is_parallel=st.booleans(),
    use_gating=st.booleans(),
    original_ln_before=st.booleans(),
    original_ln_after=st.booleans(),
    ln_before=st.booleans(),
    ln_after=st.booleans(),
    residual_before_ln=st.sampled_from([True, False, "post_add"]),
    adapter_residual_before_ln=st.booleans(),
    leave_out=st.lists(st.integers(-1, 5), max_size=3),
    phm_layer=st.booleans(),
    phm_dim=st.sampled_from([1, 2, 3, 4, 7]),
    phm_rank=st.integers(0, 3),
    phm_bias=st.booleans(),
    factorized_phm_W=st.booleans(),
    factorized_phm_rule=st.booleans(),
    shared_phm_rule=st.booleans(),
    shared_W_phm=st.booleans(),
)
LORA = _object(
    {"method": st.just("lora"), "modules": _ADDRESSES, "rank": st.integers(0, 40), "scaling": st.one_of(st.floats(-3, 3), _JUNK)},
    use_gating=st.booleans(),
    ranks=st.dictionaries(st.just("layers.0.q"), st.integers(0, 3), max_size=1),
)
IA3 = _object({"method": st.just("ia3")}, outputs=_ADDRESSES, inputs=_ADDRESSES, scaling=_JUNK, use_gating=st.booleans())
PREFIX = _object(
    {"method": st.just("prefix"), "prefix_length": st.integers(0, 9)},
    groups=st.lists(st.sampled_from(["self", "encoder", "cross", "x"]), max_size=3),
    flat=st.booleans(),
    bottleneck_size=st.integers(0, 9),
    non_linearity=_ACTIVATION,
    shift_positions=st.booleans(),
    use_gating=st.booleans(),
    shared_gating=st.booleans(),
    leave_out=st.lists(st.integers(-1, 5), max_size=3),
)
PROMPT = _object(
    {"method": st.just("prompt"), "prompt_length": st.integers(0, 9), "place": st.sampled_from(["words", "embeddings", "x"])},
    after_first=st.booleans(),
)
INVERTIBLE = _object(
    {"method": st.just("invertible")}, non_linearity=_ACTIVATION, reduction_factor=st.one_of(st.floats(-1, 100, allow_nan=False), _JUNK)
)
NORMS = _object(
    {
        "method": st.just("norms"),
        "modules": st.lists(st.sampled_from(["layers.0.mh", "layers.3.cross", "final.encoder", "x"]), min_size=1, unique=True),
    }
)
HEAD = _object(
    {
        "type": st.sampled_from(
            ["classification", "tagging", "question_answering", "dependency_parsing", "masked_lm", "seq2seq_lm", "regression", "x"]
        )
    },
    layers=st.integers(-1, 4),
    activation=st.one_of(st.none(), _ACTIVATION),
    use_pooler=st.booleans(),
    own_pooler=st.booleans(),
    bias=st.booleans(),
    labels=st.lists(st.text("ab", max_size=3), max_size=4),
    pooling=st.sampled_from([None, "mean", "cls"]),
    vocab_size=st.sampled_from([None, 0, 7, 60]),
    norm=st.booleans(),
    invert=st.booleans(),
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "bottleneck": BOTTLENECK, "lora": LORA, "ia3": IA3, "prefix": PREFIX, "prompt": PROMPT, "invertible": INVERTIBLE, "norms": NORMS,
}  # fmt: skip
# One part most of the time, so that many examples get as far as the engine; sometimes several.
_ONE = st.sampled_from(list(PARTS)).flatmap(lambda name: st.fixed_dictionaries({name: PARTS[name]}))
METHODS = st.one_of(_ONE, _ONE, st.fixed_dictionaries({}, optional=PARTS))


@pytest.fixture(scope="module", params=["bert", "llama", "t5"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp(request.param))


def check_sentence(error: StoreError) -> None:
    """What every refusal must be: one line, not blown up by its cause."""
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 1500


def package(fields: dict[str, Any]) -> bytes:
    """A package whose tensors are what its manifest promises, as a careful attacker would make it; raises where there is no law."""
    manifest = Manifest.model_validate(fields)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(scale=0.1, size=shape).astype("<f4") for name, shape in manifest.tensors().items()}
    return write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})


@given(methods=METHODS, head=st.one_of(st.none(), st.none(), HEAD))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_manifest_is_refused_or_served(served: Served, methods: dict[str, Any], head: dict[str, Any] | None) -> None:
    fields = {"methods": methods, "head": head, "backbone": served.backbone.spec.model_dump()}
    try:
        data = package(fields)
    except (ValueError, StoreError):  # pydantic's ValidationError is a ValueError
        event("no such manifest")
        return
    path = served.folder / "any.safetensors"
    path.write_bytes(data)
    try:
        published = served.publisher.package(path, Upload("any")).published
    except StoreError as error:
        event("refused at publish")
        check_sentence(error)
        return
    event("served")
    digest = published.record.digest
    served.engine.load(digest, served.engine.read(path, published.package.manifest))
    hidden = served.answer(f"any@{digest}", "hidden")["hidden"]
    assert hidden.shape == (6, served.backbone.spec.hidden_size)
    assert np.isfinite(hidden).all()
    if head is not None and head["type"] != "embedding":
        assert all(np.isfinite(array).all() for array in served.answer(f"any@{digest}", "logits").values())
    served.engine.unload(digest)


CONFIG_KEYS = (
    "adapter_residual_before_ln", "cross_adapter", "factorized_phm_W", "inv_adapter", "is_parallel", "leave_out", "ln_after",
    "ln_before", "mh_adapter", "non_linearity", "original_ln_after", "original_ln_before", "output_adapter", "phm_dim", "phm_layer",
    "reduction_factor", "residual_before_ln",
    "scaling", "use_gating", "architecture", "r", "alpha", "attn_matrices", "composition_mode", "prefix_length", "flat", "configs",
)  # fmt: skip
_VALUES = st.one_of(
    _JUNK, st.sampled_from(["lora", "prefix_tuning", "union", "scale", "nice", "glow", "relu", "gelu"]), st.lists(_JUNK, max_size=3)
)


@given(
    changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), _VALUES, max_size=4),
    top=st.dictionaries(st.sampled_from(["version", "model_type", "hidden_size", "name", "config"]), _JUNK, max_size=1),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_folder_is_imported_or_refused(golden: Path, changes: dict[str, Any], top: dict[str, Any]) -> None:
    source = golden / "bert_pfeiffer_cls" / "safetensors" / "adapters" / "sst"
    with tempfile.TemporaryDirectory() as folder:
        for path in source.iterdir():
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        config = json.loads((source / "adapter_config.json").read_text())
        config["config"] |= changes
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config | top))
        try:
            imported = import_folder(folder_files(Path(folder)))
            write_package(imported.manifest, imported.tensors)
            event("imported")
        except StoreError as error:
            event("refused")
            check_sentence(error)
