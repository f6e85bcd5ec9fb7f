"""Heads on the device: from the last hidden state of the rows of one head to their raw outputs.

Weights are kept in the backbone's numbers. Pooling and a head's own products are done in float32, whatever those are; the
backbone's pooler and the products with a vocabulary are done in the backbone's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, normalize

from adapter_store.manifest import LM_HEADS, Head
from server.core import Readout
from server.engine.transfers import on_device
from server.methods.activations import ACTIVATIONS
from server.methods.invertible import InvertibleWeights
from server.methods.lora import Node, adapt, scaled_input

Named = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head and its tensors, under the names of the shape law."""

    head: Head
    tensors: Named

    @classmethod
    def of(cls, head: Head, tensors: Named) -> "HeadWeights":
        """The head of a package from all of its tensors."""
        return cls(head, {name: tensor for name, tensor in tensors.items() if name.startswith("head.")})

    def apply(self, features: Tensor) -> Tensor:
        """Raw logits [n, outputs] from features [n, H]: Linear, activation, Linear ..."""
        act = ACTIVATIONS[self.head.activation or "linear"]
        for number in range(self.head.layers):
            weight, bias = self.tensors[f"head.{number}.weight"], self.tensors.get(f"head.{number}.bias")
            features = _linear(features if number == 0 else act(features), weight, bias)
        return features


@dataclass(frozen=True, slots=True, eq=False)
class Pooler:
    """The backbone's pooler: activation(W x + b), with a norm after it in ModernBERT's prediction head."""

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor] = torch.tanh
    norm: Callable[[Tensor], Tensor] | None = None

    def apply(self, features: Tensor, node: Node | None = None) -> Tensor:
        """[n, H] to [n, H]; `node` is what the row's adapters do to the dense."""
        features = features.to(self.weight.dtype)
        read = features if node is None else scaled_input(node, features)
        y = linear(read, self.weight, self.bias)
        y = self.activation(y if node is None else adapt(node, read, y))
        return y if self.norm is None else self.norm(y)


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModel:
    """What language-model heads take from the backbone: its own head's weight [V, E] and bias (None where it has none), the scale

    of the last hidden state before any such head (T5 with tied embeddings), and the epsilon of their norms."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    eps: float = 1e-12


def embedding(hidden: Tensor, readout: Readout) -> Tensor:
    """One row's tokens [tokens, H] as one vector [H]."""
    vector = hidden[0].float() if readout.pooling == "cls" else hidden.mean(dim=0, dtype=torch.float32)
    return normalize(vector, dim=0) if readout.normalize else vector


def embeddings(rows: Sequence[Tensor], readouts: Sequence[Readout]) -> tuple[Tensor, ...]:
    """`embedding` of many rows in a few operations, whatever their number: on a GPU each costs more to ask for than to do."""
    device, lengths = rows[0].device, np.array([len(row) for row in rows])
    tokens = torch.cat(list(rows)).float()
    first = tokens.index_select(0, on_device(np.cumsum(lengths) - lengths, device))
    mean = torch.segment_reduce(tokens, "mean", lengths=on_device(lengths, device), axis=0, unsafe=True)  # unsafe: does not wait to check
    cls, unit = (
        on_device(np.array(flags), device).unsqueeze(1)
        for flags in zip(*((r.pooling == "cls", r.normalize) for r in readouts), strict=True)
    )
    vectors = torch.where(cls, first, mean)
    return torch.where(unit, normalize(vectors, dim=1), vectors).unbind(0)


def tokens_logits(
    weights: HeadWeights, rows: Sequence[Tensor], pooler: Pooler | None, nodes: Sequence[Node | None], eps: float
) -> list[Named]:
    """Tagging and question answering: every token of each row, [tokens, H] each; the rest as for `sentence_logits`."""
    logits = weights.apply(_pooled(weights, rows, pooler, nodes, eps))
    parts = torch.split(logits, [row.shape[0] for row in rows])
    if weights.head.type == "question_answering":
        return [{"start": part[:, 0], "end": part[:, 1]} for part in parts]
    return [{"logits": part} for part in parts]


def sentence_logits(
    weights: HeadWeights, features: Sequence[Tensor], pooler: Pooler | None, nodes: Sequence[Node | None], eps: float
) -> list[Named]:
    """Sentence heads: one vector [H] per row; `nodes` are what the rows' adapters do to the pooler's dense, `eps` is of its norm."""
    vectors = _pooled(weights, [vector[None] for vector in features], pooler, nodes, eps)
    return [{"logits": row} for row in weights.apply(vectors).unbind(0)]


def _pooled(weights: HeadWeights, rows: Sequence[Tensor], pooler: Pooler | None, nodes: Sequence[Node | None], eps: float) -> Tensor:
    """The rows [n, H] one below the other, through the pooler that the head uses, if any."""
    if weights.head.own_pooler:
        pooler = _own_pooler(weights, eps)
    if not weights.head.use_pooler:
        return torch.cat(list(rows))
    assert pooler is not None
    if all(node is None for node in nodes):
        return pooler.apply(torch.cat(list(rows)))
    return torch.cat([pooler.apply(row, node) for row, node in zip(rows, nodes, strict=True)])


def _own_pooler(weights: HeadWeights, eps: float) -> Pooler:
    tensors, head = weights.tensors, weights.head
    scale = tensors.get("head.pooler.norm.weight")
    norm = None if scale is None else lambda y: layer_norm(y, y.shape[-1:], scale, None, eps)
    return Pooler(tensors["head.pooler.weight"], tensors.get("head.pooler.bias"), ACTIVATIONS[head.pooler_activation], norm)


def language_logits(weights: HeadWeights, hidden: Tensor, model: LanguageModel, invertible: InvertibleWeights | None) -> Named:
    """A language-model head on some tokens of a row, [n, H] to [n, V]."""
    head, tensors = weights.head, weights.tensors
    hidden = hidden * model.scale
    if head.layers == 0:
        assert model.weight is not None
        return {"logits": linear(hidden, model.weight, model.bias)}
    if head.layers == 2:
        hidden = linear(hidden, tensors["head.dense.weight"], tensors["head.dense.bias"])
        hidden = ACTIVATIONS[head.activation or "linear"](hidden)
        if head.norm:
            hidden = layer_norm(hidden, hidden.shape[-1:], tensors["head.norm.weight"], tensors["head.norm.bias"], model.eps)
    if head.invert and invertible is not None:
        hidden = invertible.inverse(hidden)
    return {"logits": linear(hidden, tensors["head.decoder.weight"], tensors.get("head.decoder.bias"))}


def parsed(weights: HeadWeights, hidden: Tensor, word_starts: Sequence[int]) -> Named:
    """Biaffine dependency parsing (Dozat and Manning, arXiv 1611.01734) as the `adapters` library does it.

    A word is the mean of its tokens; the candidate heads are the first token (the root) and the words. arcs [words, words + 1],
    relations [words, words + 1, R]. `word_starts` ends with the token behind the last word.
    """
    hidden = hidden.float()
    edges = list(pairwise(word_starts))
    words = torch.stack([hidden[start:end].mean(dim=0) for start, end in edges]) if edges else hidden[:0]
    heads = torch.cat((hidden[:1], words))
    deps_one = torch.cat((words, words.new_ones(words.shape[0], 1)), dim=1)
    heads_one = torch.cat((heads, heads.new_ones(heads.shape[0], 1)), dim=1)
    arcs = torch.einsum("xi,ij,yj->xy", deps_one, weights.tensors["head.arcs"][0].float(), heads)
    relations = torch.einsum("xi,oij,yj->xyo", deps_one, weights.tensors["head.relations"].float(), heads_one)
    return {"arcs": arcs, "relations": relations}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in float32."""
    return linear(x.float(), weight.float(), None if bias is None else bias.float())


def is_language_model(head: Head) -> bool:
    """Whether a head answers with a word of the vocabulary."""
    return head.type in LM_HEADS
