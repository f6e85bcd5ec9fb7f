"""Work at the embeddings: invertible adapters and prompts."""

from dataclasses import dataclass

from torch import Tensor

from server.methods.invertible import InvertibleWeights

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingWork:
    """What changes at the embeddings of the first level.

    words: prompts that take the place of word embeddings; prompts: those that take the place of whole embeddings;
    invertible: adapters on the tokens of a span.
    """

    words: tuple[tuple[Span, Tensor], ...] = ()
    prompts: tuple[tuple[Span, Tensor], ...] = ()
    invertible: tuple[tuple[Span, InvertibleWeights], ...] = ()

    def at_words(self, embedded: Tensor) -> Tensor:
        """Word embeddings [T, E], changed in place."""
        for (start, end), prompt in self.words:
            embedded[start:end] = prompt
        return embedded

    def at_embeddings(self, embedded: Tensor) -> Tensor:
        """The embedding layer's output [T, E], changed in place."""
        for (start, end), weights in self.invertible:
            embedded[start:end] = weights.forward(embedded[start:end])
        for (start, end), prompt in self.prompts:
            embedded[start:end] = prompt
        return embedded
