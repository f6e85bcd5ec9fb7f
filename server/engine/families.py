"""Where the sites are, as data: one row per model family. A family is a row here, not a subclass.

A post-norm encoder computes `norm(h + x)` at each site. The row names, inside a layer of the model, the module whose output
is `h`, the module whose first argument is `x` ("" for the layer itself) and the LayerNorm.
"""

from dataclasses import dataclass
from typing import Literal

from adapter_store.methods import Site


@dataclass(frozen=True, slots=True)
class SiteModules:
    """Dotted module names inside one layer: whose output is h, whose input is x, and the norm that reads their sum."""

    site: Site
    sublayer: str
    residual: str
    norm: str


@dataclass(frozen=True, slots=True)
class Family:
    """One model family: its layers, their sites, and how it numbers positions.

    feed_forward: inside a layer, the feed-forward's first dense and the activation that follows it.
    positions: "zero" counts from 0; "after_padding" is RoBERTa's: padding_idx + 1 onwards, padding tokens not counted.
    pooler: the module that turns the first token into the pooled output, if the family has one.
    token_types: whether the model reads token type ids.
    """

    layers: str
    sites: tuple[SiteModules, ...]
    feed_forward: tuple[str, str]
    positions: Literal["zero", "after_padding"] = "zero"
    pooler: str | None = None
    token_types: bool = True


_BERT_SITES = (
    SiteModules("mh", sublayer="attention.output.dense", residual="", norm="attention.output.LayerNorm"),
    SiteModules("output", sublayer="output.dense", residual="intermediate", norm="output.LayerNorm"),
)
_BERT_FEED_FORWARD = ("intermediate.dense", "intermediate.intermediate_act_fn")
_DISTILBERT_SITES = (
    SiteModules("mh", sublayer="attention.out_lin", residual="", norm="sa_layer_norm"),
    SiteModules("output", sublayer="ffn.lin2", residual="ffn", norm="output_layer_norm"),
)

FAMILIES: dict[str, Family] = {
    "bert": Family("encoder.layer", _BERT_SITES, _BERT_FEED_FORWARD, pooler="pooler"),
    "roberta": Family("encoder.layer", _BERT_SITES, _BERT_FEED_FORWARD, positions="after_padding", pooler="pooler"),
    "xlm-roberta": Family("encoder.layer", _BERT_SITES, _BERT_FEED_FORWARD, positions="after_padding", pooler="pooler"),
    "electra": Family("encoder.layer", _BERT_SITES, _BERT_FEED_FORWARD),
    "distilbert": Family("transformer.layer", _DISTILBERT_SITES, ("ffn.lin1", "ffn.activation"), token_types=False),
}
