"""The engine: packages on the device, setups compiled into programs, batches run. Belongs to one thread; knows no HTTP and no store."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adapter_store.manifest import TOKEN_HEADS, Head, Manifest
from server.core import Batch, Outputs, Sequence, pack
from server.engine import heads
from server.engine.backbone import Backbone
from server.engine.bank import Bank, BankShape
from server.engine.graphs import Graphs
from server.engine.heads import HeadWeights
from server.engine.kernels import PLAIN, Kernels, kernels_for
from server.engine.lanes import LANE_TOKENS, Lanes, split
from server.engine.loader import LoadedPackage, load_package
from server.engine.plan import Row, own_tokens, plan
from server.engine.program import Program, Resident
from server.engine.programs import Programs
from server.engine.running import Running, Span, StreamPlan
from server.engine.staging import Staged, host_bytes, measured, stage
from server.engine.transfers import Arrival, Transfers, transfers_for

Named = dict[str, Tensor]


class Engine:
    """Runs batches of rows of many routes on one backbone.

    `fast=False` sends every adapter through the step-by-step twin of the banks and folded fusions, and every row through all
    layers by itself; the tests hold the two equal. `kernels` and `transfers` are by default those of the backbone's device.
    """

    def __init__(
        self,
        backbone: Backbone,
        fast: bool = True,
        program_bytes: int = 512 << 20,
        lane_tokens: int = LANE_TOKENS,
        kernels: Kernels | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        self.backbone = backbone
        self._fast = fast
        self._lanes = Lanes(len(backbone.lanes))
        self._lane_tokens = lane_tokens
        self._kernels = (kernels or kernels_for(backbone.device, backbone.dtype)) if fast else PLAIN
        capture, single = self._kernels.capture, len(backbone.lanes) == 1 and len(backbone.streams) == 1
        self._graphs = Graphs(lambda made: backbone.forward(made)[0], capture) if capture and single else None
        self._transfers = transfers or transfers_for(backbone.device)
        self._arriving: dict[str, Arrival] = {}  # packages that no batch has waited for yet
        self._streams = [replace(stream, kernels=self._kernels) for stream in backbone.streams]
        self._banks: dict[BankShape, Bank] = {}
        self._residents: dict[str, Resident] = {}
        self._programs = Programs(self._residents, fast, program_bytes)

    def measure(self, manifest: Manifest) -> tuple[int, int]:
        """Bytes of a package on the host and on the device, at most. Safe to call from any thread."""
        nbytes = measured(manifest, self.backbone.dtype, self._fast)
        return host_bytes(nbytes, self._pinned), nbytes

    def read(self, path: Path, manifest: Manifest) -> Staged:
        """Reads a validated package's file and stages it on the host. Safe to call from any thread; `load` then takes it in."""
        return self._staged(load_package(path, manifest))

    def load(self, digest: str, package: Staged | LoadedPackage) -> int:
        """Puts a package on the device and returns its bytes there. Loading what is resident does nothing.

        On a CPU the device's memory is the host's: what was staged is used as it lies. On a GPU the copy may still be under way
        when this returns; the first batch that uses the package waits for it.
        """
        if digest in self._residents:
            return self._residents[digest].nbytes
        staged = package if isinstance(package, Staged) else self._staged(package)
        arriving = self._transfers.upload(staged.buffer)
        if arriving.buffer is not staged.buffer:
            staged = staged.moved(arriving.buffer)
            self._arriving[digest] = arriving
        bank, slot = None, 0
        if staged.shape is not None and staged.slot is not None:
            bank = self._banks.setdefault(staged.shape, Bank(staged.shape, self.backbone.dtype if self._kernels.grouped else None))
            slot = bank.put(staged.slot)
        self._residents[digest] = Resident(staged.package, bank, slot, staged.nbytes)
        return staged.nbytes

    def unload(self, digest: str) -> None:
        """Frees a package's memory. No batch that names it may be waiting."""
        resident = self._residents.pop(digest)
        self._arriving.pop(digest, None)
        self._programs.forget(digest)
        if resident.bank is not None:
            resident.bank.free(resident.slot)
            if not resident.bank:
                del self._banks[resident.bank.shape]

    def _staged(self, package: LoadedPackage) -> Staged:
        package, words = self._tied(package)
        return stage(package, self.backbone.dtype, self._fast, self._pinned, words)

    @property
    def _pinned(self) -> bool:
        return self.backbone.device.type == "cuda"

    @property
    def program_bytes(self) -> int:
        """Bytes of compiled programs: folded fusions, beside the packages that they are folded from."""
        return self._programs.nbytes

    @property
    def resident(self) -> frozenset[str]:
        """The digests on the device."""
        return frozenset(self._residents)

    def run(self, batch: Batch) -> list[Outputs]:
        """The named float32 arrays of each row of the batch, in its order; what they are is the row's `Readout`."""
        self._await(digest for row in batch.rows for digest in row.route.digests)
        compiled = self._programs.of(row.route.setup for row in batch.rows)
        keys = [self._key(place, row) for place, row in enumerate(batch.rows)]
        parts = split([row.tokens for row in batch.rows], keys, self.backbone.spec.hidden_size, self._lanes.count, self._lane_tokens)

        def run(lane: int) -> list[Outputs]:
            rows = [batch.rows[place] for place in parts[lane]]
            return self._run(rows, [compiled[row.route.setup] for row in rows], [keys[place] for place in parts[lane]], lane)

        answers = self._lanes.run(len(parts), run)
        if len(parts) == 1:
            return answers[0]
        by_place = {place: one for places, some in zip(parts, answers, strict=True) for place, one in zip(places, some, strict=True)}
        return [by_place[place] for place in range(len(batch.rows))]

    @torch.inference_mode()
    def _run(self, rows: Rows[Sequence], programs: Rows[Program], keys: Rows[Hashable], lane: int) -> list[Outputs]:
        """The same for rows in a batch's order, on one lane."""
        first = [Row(row.input_ids, row.type_ids, program, key) for row, program, key in zip(rows, programs, keys, strict=True)]
        explained = any(row.readout.explain for row in rows)
        encoded, running = self._forward(plan(first, self._streams[0]), explained, lane)
        spans = running.plan.spans
        hidden = {place: self._own(first[place], encoded, spans[place]) for place in range(len(first))}
        outputs: dict[int, Named] = {}
        if explained:
            _explain(outputs, rows, running)
        decoded = self._decode(rows, programs, encoded, spans, explained, outputs, lane) if len(self._streams) > 1 else {}
        self._read_out(rows, programs, first, encoded, spans, hidden, decoded, outputs)
        return self._transfers.fetch([outputs[place] for place in range(len(rows))])

    def _forward(self, made: StreamPlan, explained: bool, lane: int) -> tuple[Tensor, Running]:
        """The first stream's forward, by a graph where there is one for it."""
        replayed = None if self._graphs is None or explained else self._graphs.run(made)
        return self.backbone.forward(made, explained, lane) if replayed is None else (replayed, Running(made))

    def _await(self, digests: Iterable[str]) -> None:
        """The device waits for packages that are still on their way to it."""
        if self._arriving:
            for digest in set(digests) & self._arriving.keys():
                self._arriving.pop(digest).wait()

    def greedy(self, rows: Rows[Sequence], max_new_tokens: int, eos_token_id: int | None = None) -> list[list[int]]:
        """The tokens that a language-model head finds likeliest, one after the other, for each row; no cache, so every step runs whole.

        A decoder-only row is continued; an encoder-decoder's decoder begins with the row's `decoder_ids`. The row's readout must be
        logits. A row ends after `eos_token_id`.
        """
        made: list[list[int]] = [[] for _ in rows]
        for _ in range(max_new_tokens):
            places = [i for i, tokens in enumerate(made) if not tokens or tokens[-1] != eos_token_id]
            if not places:
                break
            batch, order = pack([_longer(rows[i], made[i]) for i in places])
            outputs = self.run(batch)
            for i, place in zip(places, order, strict=True):
                made[i].append(int(np.argmax(outputs[place]["logits"][-1])))
        return made

    def _key(self, place: int, row: Sequence) -> Hashable:
        """Equal keys are equal inputs, whose rows may be one sequence for a while."""
        return (row.input_ids.tobytes(), row.type_ids.tobytes()) if self._fast else place

    def _tied(self, package: LoadedPackage) -> tuple[LoadedPackage, Tensor | None]:
        """A language-model head that is a copy of the word embeddings is not held twice: the package, and the embeddings if so."""
        decoder = None if package.head is None else package.head.tensors.get("head.decoder.weight")
        words = self.backbone.words
        if package.head is None or decoder is None or decoder.shape != words.shape:
            return package, None
        if not torch.equal(decoder.to(words.dtype), words.to(decoder.device)):
            return package, None
        head = replace(package.head, tensors=package.head.tensors | {"head.decoder.weight": words})
        return replace(package, head=head), words

    def _decode(
        self,
        rows: Rows[Sequence],
        programs: Rows[Program],
        encoded: Tensor,
        spans: Rows[Span],
        explained: bool,
        outputs: dict[int, Named],
        lane: int,
    ) -> dict[int, Tensor]:
        """The decoder's last hidden state of each row that has decoder tokens."""
        places = sorted(
            (i for i, row in enumerate(rows) if row.decoder_ids is not None), key=lambda i: rows[i].tokens - len(rows[i].input_ids)
        )
        if not places:
            return {}
        second = []
        for place in places:
            ids = rows[place].decoder_ids
            assert ids is not None
            second.append(Row(ids, np.zeros_like(ids), programs[place], place, spans[place]))
        hidden, running = self.backbone.decode(plan(second, self._streams[1]), encoded, explained, lane)
        if explained:
            _explain(outputs, [rows[place] for place in places], running, places)
        return {place: hidden[start:end] for place, (start, end) in zip(places, running.plan.spans, strict=True)}

    @staticmethod
    def _own(row: Row, hidden: Tensor, span: Span) -> Tensor:
        """The row's own tokens, without a prompt's."""
        pieces = [hidden[span[0] + a : span[0] + b] for a, b in own_tokens(row)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_out(
        self,
        rows: Rows[Sequence],
        programs: Rows[Program],
        first: Rows[Row],
        encoded: Tensor,
        spans: Rows[Span],
        hidden: dict[int, Tensor],
        decoded: dict[int, Tensor],
        outputs: dict[int, Named],
    ) -> None:
        pooled: list[int] = []
        by_head: dict[tuple[str | None, Head], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            named = outputs.setdefault(place, {})
            match row.readout.output:
                case "hidden":
                    named["hidden"] = decoded.get(place, hidden[place])
                case "encoder_hidden":
                    named["hidden"] = hidden[place]
                case "embedding":
                    pooled.append(place)
                case "logits":
                    if row.route.head is None:
                        raise ValueError(f"'{row.route.model}' has no head to read logits from")
                    by_head[row.route.head_digest, row.route.head].append(place)
        if pooled and self._kernels != PLAIN:
            vectors = heads.embeddings([hidden[place] for place in pooled], [rows[place].readout for place in pooled])
        else:
            vectors = tuple(heads.embedding(hidden[place], rows[place].readout) for place in pooled)
        for place, vector in zip(pooled, vectors, strict=True):
            outputs[place]["embedding"] = vector
        last = {place: decoded.get(place, hidden[place]) for place in range(len(rows))}
        for (digest, head), places in by_head.items():
            weights = self._head(digest, head)
            nodes = [programs[place].linears.get("pooler") for place in places]
            pooling = (self.backbone.pooler, nodes, getattr(self.backbone.config, "norm_eps", 1e-5))
            if head.type in TOKEN_HEADS:
                factor = self.backbone.language_model.scale if head.scaled else 1.0
                answers = heads.tokens_logits(weights, [last[place] * factor for place in places], *pooling)
            elif head.type == "dependency_parsing":
                answers = [heads.parsed(weights, last[place], rows[place].word_starts) for place in places]
            elif heads.is_language_model(head):
                answers = [self._language(weights, rows[place], programs[place], last[place]) for place in places]
            else:
                features = [
                    self._sentence(head, rows[place], hidden[place], decoded.get(place), encoded, spans[place], first[place])
                    for place in places
                ]
                answers = heads.sentence_logits(weights, features, *pooling)
            for place, answer in zip(places, answers, strict=True):
                outputs[place].update(answer)

    def _head(self, digest: str | None, head: Head) -> HeadWeights:
        if digest is None:
            return HeadWeights(head, {})
        weights = self._residents[digest].package.head
        assert weights is not None
        return weights

    def _language(self, weights: HeadWeights, row: Sequence, program: Program, hidden: Tensor) -> Named:
        chosen = hidden if row.readout.positions is None else hidden[list(row.readout.positions)]
        return heads.language_logits(weights, chosen, self.backbone.language_model, program.invertible)

    def _sentence(
        self, head: Head, row: Sequence, hidden: Tensor, decoded: Tensor | None, encoded: Tensor, span: Span, first: Row
    ) -> Tensor:
        """The vector [H] that a sentence head reads."""
        if (head.pooling or self.backbone.pooling) == "mean":
            return hidden.mean(dim=0, dtype=torch.float32)
        match self.backbone.family.classify:
            case "first":
                return encoded[span[0]] if not first.program.prompt or not first.program.prompt[0].after_first else hidden[0]
            case "last":
                real = np.flatnonzero(row.input_ids != self.backbone.config.pad_token_id)
                if head.last_token == "rightmost":
                    return hidden[int(real[-1]) if len(real) else 0]
                return hidden[len(real) - 1]
            case "eos":
                ends = np.flatnonzero(row.input_ids == self.backbone.config.eos_token_id)
                if decoded is None or not len(ends) or ends[-1] >= decoded.shape[0]:
                    raise ValueError("a classification head of this family reads the decoder where the input has its last end token")
                return decoded[int(ends[-1])]


def _explain(outputs: dict[int, Named], rows: Rows[Sequence], running: Running, places: Rows[int] | None = None) -> None:
    """The fusions' attention of each row that asked, from what the sites noted by sequence."""
    assert running.attentions is not None
    noted: dict[int, dict[Span, Named]] = defaultdict(lambda: defaultdict(dict))  # by level, whose sequences have spans of their own
    for address, works in running.attentions.items():
        _, layer, site = address.split(".")
        level = running.plan.level_of(int(layer))
        for number, spans, attention in works:
            parts = torch.split(attention, [end - start for start, end in spans])
            for span, part in zip(spans, parts, strict=True):
                noted[level][span][f"attention.{layer}.{site}.{number}"] = part
    for level, by_span in noted.items():
        for place, (row, span) in enumerate(zip(rows, running.plan.spans_in(level), strict=True)):
            if row.readout.explain:
                outputs.setdefault(place if places is None else places[place], {}).update(by_span.get(span, {}))


def _longer(row: Sequence, tokens: list[int]) -> Sequence:
    """A row with the tokens made so far behind it."""
    more = np.array(tokens, dtype=np.int64)
    if row.decoder_ids is not None:
        return Sequence(row.route, row.input_ids, row.type_ids, row.readout, np.concatenate([row.decoder_ids, more]), row.word_starts)
    ids, types = np.concatenate([row.input_ids, more]), np.concatenate([row.type_ids, np.zeros_like(more)])
    return Sequence(row.route, ids, types, row.readout, None, row.word_starts)


def set_threads(count: int) -> None:
    """Number of threads of one operation on the CPU; 0 leaves torch's own choice."""
    if count > 0:
        torch.set_num_threads(count)
