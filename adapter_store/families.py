"""Where the modules of each model family lie, as data: one row per family, read by the importers and by the engine.

Paths are those of transformers' classes (5.x), dotted, relative to the base model; `{i}` is the layer. Canonical names of linears:

    q k v qkv o            self-attention: projections (qkv where the three are one), output
    cross_q ... cross_o    cross-attention of a decoder
    up gate down           feed-forward: first dense (of a gated one the part that is not gated), gate, second dense
    pooler                 the dense of the pooler; embedding_projection: from the embedding's size to the hidden size

An address is a canonical name, in a layer `layers.{i}.{name}`. Layers are counted through: encoder first, then decoder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Site = Literal["mh", "cross", "output"]

LINEARS = (
    "q", "k", "v", "qkv", "o", "cross_q", "cross_k", "cross_v", "cross_o", "up", "gate", "down", "pooler", "embedding_projection",
)  # fmt: skip
ADDRESS = re.compile(rf"layers\.(0|[1-9][0-9]{{0,3}})\.({'|'.join(LINEARS)})|pooler|embedding_projection")


@dataclass(frozen=True, slots=True)
class SiteModules:
    """One site of a layer.

    sublayer: whose output is h; residual: whose first argument is x ("" is the layer itself); norm: the LayerNorm that reads
    h + x in a post-norm model, "" in a pre-norm model, whose layer adds h and x itself.
    holder: where the `adapters` library hangs its adapters, relative to the layer.
    swapped: the library hands its adapters x for h and h for x here (ALBERT's self-attention, adapters 1.3.0), and they have learned so.
    """

    site: Site
    sublayer: str
    residual: str
    norm: str
    holder: str
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Layers:
    """One stack of equal layers: its path with `{i}`, its sites, its linears by canonical name, and its attentions.

    path: ALBERT's has `{g}` too: its layers are counted group by group. Two paths of a linear with "|" between them are
    alternatives, of which a model has one.
    feed_forward: the feed-forward's first dense and the activation after it, where the two can run as one.
    attentions: the modules that call the attention interface, by the group of prefixes they take ("self", "encoder", "cross").
    norms: the norms that a checkpoint of the original Compacter code may have tuned, by our name.
    """

    path: str
    sites: tuple[SiteModules, ...]
    linears: Mapping[str, str]
    attentions: Mapping[str, str]
    feed_forward: tuple[str, str] | None = None
    norms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """One model family.

    prefix: of the keys of the `adapters` library and of PEFT's `base_model.model.` (transformers' base_model_prefix); the library
    uses `library_prefix` where it differs. layers: one stack, or encoder and decoder.
    positions: "zero" counts from 0; "after_padding" is RoBERTa's: padding_idx + 1 onwards, padding tokens not counted;
    "none": the model has relative positions only. classify: the token that sentence heads read.
    embeddings: the module whose output an invertible adapter changes; words: the word embedding, tied to LM heads.
    lm: which class carries the family's own language-model head, and lm_head its module.
    last: a module behind the last layer whose output the model folds into the shape of its input (GPT-2), which levels outgrow.
    hooked: the library reaches this family through hooks (its plugin interface): x is the sub-layer's normalised input, and
    nothing of the backbone's norm runs after the adapter.
    """

    prefix: str
    layers: tuple[Layers, ...]
    embeddings: str
    words: str
    linears: Mapping[str, str] = field(default_factory=dict)
    library_prefix: str | None = None
    invertible: str = "invertible_adapters"
    prefix_groups: Mapping[str, str] = field(default_factory=lambda: {"self_prefix": "self"})
    positions: Literal["zero", "after_padding", "none"] = "zero"
    token_types: bool = False
    causal: bool = False
    pooler: str | None = None
    classify: Literal["first", "last", "eos"] = "first"
    lm: Literal["causal_lm", "seq2seq_lm"] | None = None
    lm_head: str | None = None
    last: str | None = None
    hooked: bool = False
    shared_layers: bool = False

    @property
    def encoder_decoder(self) -> bool:
        """Whether there are two stacks."""
        return len(self.layers) == 2


_BERT = Layers(
    path="encoder.layer.{i}",
    sites=(
        SiteModules("mh", "attention.output.dense", "", "attention.output.LayerNorm", "attention.output"),
        SiteModules("output", "output.dense", "intermediate", "output.LayerNorm", "output"),
    ),
    linears={
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
    attentions={"self": "attention.self"},
    feed_forward=("intermediate.dense", "intermediate.intermediate_act_fn"),
)
_DISTILBERT = Layers(
    path="transformer.layer.{i}",
    sites=(
        SiteModules("mh", "attention.out_lin", "", "sa_layer_norm", "attention_adapters"),
        SiteModules("output", "ffn.lin2", "ffn", "output_layer_norm", "output_adapters"),
    ),
    linears={
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
    attentions={"self": "attention"},
    feed_forward=("ffn.lin1", "ffn.activation"),
)
_ALBERT = Layers(
    path="encoder.albert_layer_groups.{g}.albert_layers.{i}",
    sites=(
        SiteModules("mh", "attention.dense", "", "attention.LayerNorm", "attention.attention_adapters", swapped=True),
        SiteModules("output", "ffn_output", "ffn", "full_layer_layer_norm", "output_adapters"),
    ),
    linears={
        "q": "attention.query",
        "k": "attention.key",
        "v": "attention.value",
        "o": "attention.dense",
        "up": "ffn",
        "down": "ffn_output",
    },
    attentions={"self": "attention"},
    feed_forward=("ffn", "activation"),
)
_MODERNBERT = Layers(
    path="layers.{i}",
    sites=(
        SiteModules("mh", "attn.Wo", "attn", "", "attention_adapters"),
        SiteModules("output", "mlp.Wo", "mlp", "", "output_adapters"),
    ),
    linears={"qkv": "attn.Wqkv", "o": "attn.Wo", "up": "mlp.Wi", "down": "mlp.Wo"},
    attentions={"self": "attn"},
)
_GPT2 = Layers(
    path="h.{i}",
    sites=(
        SiteModules("mh", "attn.c_proj", "", "", "attention_adapters"),
        SiteModules("output", "mlp.c_proj", "ln_2", "", "output_adapters"),
    ),
    linears={"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    attentions={"self": "attn"},
)
_LLAMA = Layers(
    path="layers.{i}",
    sites=(
        SiteModules("mh", "self_attn.o_proj", "", "", "attention_adapters"),
        SiteModules("output", "mlp.down_proj", "post_attention_layernorm", "", "output_adapters"),
    ),
    linears={
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    attentions={"self": "self_attn"},
)


def _t5(stack: str, feed_forward: int) -> Layers:
    """T5's encoder or decoder. Of a gated feed-forward `wi_1` is the first dense and `wi_0` the gate."""
    decoder = stack == "decoder"
    names = {"mh": ("layer.0", "SelfAttention", ""), "cross": ("layer.1", "EncDecAttention", "cross_")}
    used = {site: names[site] for site in (("mh", "cross") if decoder else ("mh",))}
    wide = f"layer.{feed_forward}"
    sites: list[SiteModules] = [SiteModules(site, f"{layer}.{name}.o", layer, "", layer) for site, (layer, name, _) in used.items()]  # type: ignore[arg-type]
    sites.append(SiteModules("output", f"{wide}.DenseReluDense.wo", wide, "", wide))
    linears = {f"{mark}{letter}": f"{layer}.{name}.{letter}" for layer, name, mark in used.values() for letter in "qkvo"}
    linears |= {
        "up": f"{wide}.DenseReluDense.wi|{wide}.DenseReluDense.wi_1",
        "gate": f"{wide}.DenseReluDense.wi_0",
        "down": f"{wide}.DenseReluDense.wo",
    }
    attentions = {"self": "layer.0.SelfAttention", "cross": "layer.1.EncDecAttention"} if decoder else {"encoder": "layer.0.SelfAttention"}
    norms = {site: f"{layer}.layer_norm" for site, (layer, _, _) in used.items()} | {"output": f"{wide}.layer_norm"}
    return Layers(f"{stack}.block.{{i}}", tuple(sites), linears, attentions, norms=norms)


FAMILIES: dict[str, Family] = {
    "bert": Family(
        "bert.", (_BERT,), "embeddings", "embeddings.word_embeddings", {"pooler": "pooler.dense"}, token_types=True, pooler="pooler"
    ),
    "roberta": Family(
        "roberta.", (_BERT,), "embeddings", "embeddings.word_embeddings", {"pooler": "pooler.dense"},
        positions="after_padding", token_types=True, pooler="pooler",
    ),
    "xlm-roberta": Family(
        "roberta.", (_BERT,), "embeddings", "embeddings.word_embeddings", {"pooler": "pooler.dense"},
        positions="after_padding", token_types=True, pooler="pooler",
    ),
    "electra": Family(
        "electra.", (_BERT,), "embeddings", "embeddings.word_embeddings", {"embedding_projection": "embeddings_project"}, token_types=True
    ),
    "distilbert": Family(
        "distilbert.", (_DISTILBERT,), "embeddings", "embeddings.word_embeddings", prefix_groups={"self": "self", "self_prefix": "self"}
    ),
    "albert": Family(
        "albert.", (_ALBERT,), "embeddings", "embeddings.word_embeddings",
        {"pooler": "pooler", "embedding_projection": "encoder.embedding_hidden_mapping_in"},
        token_types=True, pooler="pooler", shared_layers=True,
    ),
    "modernbert": Family(
        "model.", (_MODERNBERT,), "embeddings", "embeddings.tok_embeddings", {"pooler": "head.dense"}, pooler="head", hooked=True
    ),
    "gpt2": Family(
        "transformer.", (_GPT2,), "drop", "wte", causal=True, classify="last", lm="causal_lm", lm_head="lm_head", last="ln_f"
    ),
    "llama": Family(
        "model.", (_LLAMA,), "embed_tokens", "embed_tokens", causal=True, classify="last", lm="causal_lm", lm_head="lm_head"
    ),
    "t5": Family(
        "", (_t5("encoder", 1), _t5("decoder", 2)), "encoder.embed_tokens", "shared", library_prefix="transformer.",
        invertible="encoder.invertible_adapters",
        prefix_groups={"encoder_prefix": "encoder", "self_prefix": "self", "cross_prefix": "cross"},
        positions="none", classify="eos", lm="seq2seq_lm", lm_head="lm_head",
    ),
}  # fmt: skip
FAMILIES["mt5"] = FAMILIES["t5"]
