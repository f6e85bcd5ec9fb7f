"""make bench: padded transformers, packed bare, packed with one adapter, packed with as many adapters as rows.

One process, one workload, the contenders in turn (A B C D A B C D ...), medians. The linears' rate is their multiply-adds
over the time of the whole forward; the matrix rate is the same products alone, measured in the same run.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel
from transformers.utils import logging

from adapter_store.methods import Bottleneck
from benchmarks.measuring import in_turn, machine
from benchmarks.workload import lengths, random_package, sequences
from server.core import Batch, Use, pack
from server.engine.backbone import Backbone, layers_of, load_backbone
from server.engine.engine import Engine
from server.settings import default_backbone

RESULTS = Path(__file__).parent / "results" / "packed.json"
CONTENDERS = ("padded", "bare", "one adapter", "an adapter per row")


def padded(model: torch.nn.Module, batch: Batch) -> Callable[[], object]:
    """The same rows as stock transformers takes them: padded to the longest, with an attention mask, SDPA."""
    rows = batch.rows
    ids = torch.zeros(len(rows), max(row.tokens for row in rows), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : row.tokens] = torch.from_numpy(row.input_ids)
        mask[place, : row.tokens] = 1

    def run() -> object:
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1).numpy()

    return run


def linears(backbone: Backbone) -> list[tuple[int, int]]:
    """(in, out) of every Linear that each token passes."""
    layers = layers_of(backbone.model, backbone.family.layers[0])
    return [(m.in_features, m.out_features) for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]


def products(shapes: list[tuple[int, int]], tokens: int) -> Callable[[], object]:
    """The linears' matrix products alone, on `tokens` rows."""
    pairs = [(torch.randn(tokens, i), torch.randn(i, o), torch.empty(tokens, o)) for i, o in shapes]

    def run() -> object:
        with torch.inference_mode():
            for a, b, out in pairs:
                torch.mm(a, b, out=out)
        return None

    return run


def measure(engine: Engine, stock: torch.nn.Module, rows: int, repeats: int, seed: int) -> dict[str, float]:
    """Medians of all contenders at one batch size, in milliseconds, and rates in GFLOP/s."""
    rng = np.random.default_rng(seed)
    tokens = lengths(rng, rows)
    names = [f"adapter-{i}" for i in range(rows)]
    batches = {
        "bare": pack(sequences(rng, tokens, [None] * rows))[0],
        "one adapter": pack(sequences(rng, tokens, [Use(names[0])] * rows))[0],
        "an adapter per row": pack(sequences(rng, tokens, [Use(name) for name in names]))[0],
    }
    shapes = linears(engine.backbone)
    runs = {name: (lambda batch=batch: engine.run(batch)) for name, batch in batches.items()}
    total = sum(tokens)
    times = in_turn({"padded": padded(stock, batches["bare"]), **runs, "products": products(shapes, total)}, repeats)
    work = 2 * total * sum(i * o for i, o in shapes) / 1e9
    return {
        "rows": rows,
        "tokens": total,
        "padded_tokens": rows * max(tokens),
        **{name: times[name] * 1000 for name in CONTENDERS},
        "linears_gflops": work / times["bare"],
        "matrix_gflops": work / times["products"],
    }


def table(results: list[dict[str, float]]) -> Table:
    """The results for people."""
    columns = (
        "rows",
        "tokens (padded)",
        "padded ms",
        "bare ms",
        "one ms",
        "per row ms",
        "padded / bare",
        "bare / one",
        "bare / per row",
        "linears / matrix GFLOP/s",
    )
    shown = Table(*columns, title="Packed against padded, and many adapters against none (medians)")
    for r in results:
        shown.add_row(
            f"{r['rows']:.0f}",
            f"{r['tokens']:.0f} ({r['padded_tokens']:.0f})",
            *(f"{r[name]:.1f}" for name in CONTENDERS),
            f"{r['padded'] / r['bare']:.2f}",
            f"{r['bare'] / r['one adapter']:.3f}",
            f"{r['bare'] / r['an adapter per row']:.3f}",
            f"{r['linears_gflops']:.0f} / {r['matrix_gflops']:.0f}",
        )
    return shown


def main() -> None:
    """Runs the benchmark, prints the table, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = Engine(load_backbone(default_backbone()))
    stock = AutoModel.from_pretrained(default_backbone(), attn_implementation="sdpa", dtype=torch.float32).eval()
    for i in range(max(options.rows)):
        engine.load(f"adapter-{i}", random_package(engine.backbone.spec, i, bottleneck=Bottleneck()))
    results = [measure(engine, stock, rows, options.repeats, options.seed) for rows in options.rows]
    Console(width=170).print(table(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
