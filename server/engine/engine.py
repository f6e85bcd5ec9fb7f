"""The engine: packages in, batches through the backbone, numpy out. It belongs to one thread, which owns the device."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapter_store.manifest import Manifest
from adapter_store.methods import Bottleneck
from server.core import Array, Batch, Sequence
from server.engine import heads
from server.engine.backbone import Backbone
from server.engine.bank import Bank, BankShape, SiteIndex, unscaled
from server.engine.heads import HeadWeights
from server.engine.loader import LoadedPackage, load_package
from server.engine.program import Delta, Program, SiteWeights, plan, stacked
from server.methods.bottleneck import BottleneckWeights


@dataclass(slots=True, eq=False)
class _Resident:
    """A package on the device: one slot per adapter that has a delta form, the weights of the others, the head."""

    slots: list[tuple[Bottleneck, Bank, int]]
    others: list[tuple[Bottleneck, dict[SiteIndex, BottleneckWeights]]]
    head: HeadWeights | None


class Engine:
    """Runs batches of rows of many routes on one backbone.

    `fast=False` sends every adapter through the step-by-step twin of the banks; the tests hold the two equal.
    """

    def __init__(self, backbone: Backbone, fast: bool = True) -> None:
        self.backbone = backbone
        self._fast = fast
        self._banks: dict[BankShape, Bank] = {}
        self._residents: dict[str, _Resident] = {}
        self._programs: dict[tuple[str, ...], Program] = {}

    def read(self, path: Path, manifest: Manifest) -> LoadedPackage:
        """Reads a validated package's file onto the device. Safe to call from any thread; `load` then takes it in."""
        return load_package(path, manifest, self.backbone.family, self.backbone.device, self.backbone.dtype)

    def load(self, digest: str, package: LoadedPackage) -> None:
        """Gives a package its slots. Loading what is resident does nothing."""
        if digest in self._residents:
            return
        resident = _Resident([], [], package.head)
        for config, weights in package.adapters:
            shape = BankShape.of(config, weights) if self._fast and weights else None
            if shape is None:
                resident.others.append((config, weights))
                continue
            bank = self._banks.get(shape)
            if bank is None:
                bank = self._banks[shape] = Bank(shape, self.backbone.device, self.backbone.dtype)
            resident.slots.append((config, bank, bank.put(config, weights)))
        self._residents[digest] = resident

    def unload(self, digest: str) -> None:
        """Frees a package's slots. No batch that names it may be waiting."""
        resident = self._residents.pop(digest)
        for _, bank, slot in resident.slots:
            bank.free(slot)
        self._programs = {stack: program for stack, program in self._programs.items() if digest not in stack}

    @property
    def resident(self) -> frozenset[str]:
        """The digests on the device."""
        return frozenset(self._residents)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Array]:
        """One float32 array per row of the batch, in its order; what it holds is the row's `Readout`."""
        stacks = {row.route.adapters for row in batch.rows} - {()}
        hidden = self.backbone.forward(batch, plan(batch, {stack: self._program(stack) for stack in stacks}))
        return [output.float().cpu().numpy() for output in self._read_out(batch, hidden)]

    def _program(self, stack: tuple[str, ...]) -> Program:
        program = self._programs.get(stack)
        if program is None:
            program = self._programs[stack] = self._compile(stack)
        return program

    def _compile(self, stack: tuple[str, ...]) -> Program:
        residents = [self._residents[digest] for digest in stack]
        if len(residents) == 1 and len(residents[0].slots) == 1 and not residents[0].others:
            _, bank, slot = residents[0].slots[0]
            return Delta(bank, slot)
        adapters: list[tuple[Bottleneck, SiteWeights]] = []
        for resident in residents:
            adapters += [(unscaled(config), bank.weights(slot)) for config, bank, slot in resident.slots]
            adapters += resident.others
        return stacked(adapters)

    def _read_out(self, batch: Batch, hidden: Tensor) -> list[Tensor]:
        spans = list(zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True))
        outputs: dict[int, Tensor] = {}
        by_head: dict[str, list[int]] = defaultdict(list)
        for place, (row, (start, end)) in enumerate(zip(batch.rows, spans, strict=True)):
            match row.readout.output:
                case "hidden":
                    outputs[place] = hidden[start:end]
                case "embedding":
                    outputs[place] = heads.embedding(hidden[start:end], row.readout)
                case "logits":
                    by_head[_head_digest(row)].append(place)
        for digest, places in by_head.items():
            weights = self._residents[digest].head
            assert weights is not None
            answers = heads.logits(weights, hidden, [spans[place] for place in places], self.backbone.pooler)
            outputs.update(zip(places, answers, strict=True))
        return [outputs[place] for place in range(len(batch.rows))]


def _head_digest(row: Sequence) -> str:
    if row.route.head_digest is None:
        raise ValueError(f"'{row.route.model}' has no head to read logits from")
    return row.route.head_digest


def set_threads(count: int) -> None:
    """Number of threads of one operation on the CPU; 0 leaves torch's own choice."""
    if count > 0:
        torch.set_num_threads(count)
