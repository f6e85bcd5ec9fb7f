"""What the engines' figures come to: goals, tables and plots, as `record` wants them. Measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

Sections = Mapping[str, Mapping[str, Any]]
PFEIFFERS, LORAS, FUSIONS = "32 rows of 32 tasks, pfeiffer", "32 rows of 32 tasks, lora", "32 rows on one fusion"
SIXTY_FOUR, RESIDENTS = "a batch of 64", "1,000 resident adapters"
ROOFLINE = "matrix products, "
PER_CENT = "{:.2f}"


def write(command: str, sections: Sections, parity: Sequence[Mapping[str, Any]], about: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes results/engines.json."""
    multiply_adds = about["Turret"]["multiply-adds a token"]
    tables = [rates(sections, multiply_adds), *duels(sections), matrix(sections), parities(parity), operators(sections)]
    raw = {"sections": sections, "parity": parity, "about": about}
    return record.write("engines", command, settings(about), goals(sections), tables, plots(sections), raw)


def _ms(sections: Sections, title: str, contender: str) -> float:
    return float(sections[title]["figures"][contender]["ms"])


def _ratio(sections: Sections, title: str, reference: str, contender: str) -> float:
    """How many times as fast as the reference a contender is."""
    return _ms(sections, title, reference) / _ms(sections, title, contender)


def _roofline(sections: Sections, title: str) -> float:
    """Milliseconds of the matrix products alone, in the best of torch's ways."""
    return min(_ms(sections, title, name) for name in _products(sections, title))


def _products(sections: Sections, title: str) -> list[str]:
    """The ways in which the products alone were measured."""
    return [name for name in sections[title]["figures"] if name.startswith(ROOFLINE)]


def goals(sections: Sections) -> list[record.Row]:
    """The goals that engines alone decide."""
    profile = sections[SIXTY_FOUR]["profile"]
    roof = _roofline(sections, SIXTY_FOUR)
    whole = roof / _ms(sections, SIXTY_FOUR, "Turret, bare")
    share = profile["linears ms"] / profile["whole ms"]
    drawn = {kind: _ratio(sections, RESIDENTS, "one adapter", kind) for kind in ("zipf", "uniform")}
    return [
        record.goal(
            "linears", "linears at 64 mixed rows, against the measured matrix-product rate", 0.85, whole,
            detail="multiply-adds of the linears over the time of the whole forward; over the time that a profiler finds in the linears "
            f"alone, bias, GELU and residual included, it is {whole / share:.2f} ({share:.0%} of the forward)",
        ),
        record.goal(
            "adapters-64", "64 different Pfeiffer adapters in one batch, against bare", 0.95,
            _ratio(sections, SIXTY_FOUR, "Turret, bare", "Turret, an adapter per row"),
        ),
        record.goal(
            "residents-1000", "1,000 resident adapters, Zipf or uniform, against one adapter", 0.95, min(drawn.values()),
            detail=f"the lesser of Zipf 1.5, {drawn['zipf']:.2f}, and uniform, {drawn['uniform']:.2f}; batches of 32 rows",
        ),
        _against(sections, "adapters-group", "`adapters` per task group, 32 rows of 32 tasks", 7, PFEIFFERS, "adapters, per task group"),
        _against(sections, "adapters-batchsplit", "`adapters` BatchSplit, same", 4, PFEIFFERS, "adapters, BatchSplit"),
        _against(
            sections, "peft", "PEFT `adapter_names`, LoRA rank 8 on query and value, same", 5, LORAS, "PEFT, adapter_names"
        ),
        record.goal(
            "fusion-8", "fusion of 8, against `adapters`' own fusion of 8, same batch", 8,
            _ratio(sections, FUSIONS, "adapters, fusion of 8", "Turret, fusion of 8"), unit=" times",
            detail=f"32 rows; of 3: {_ratio(sections, FUSIONS, 'adapters, fusion of 3', 'Turret, fusion of 3'):.1f} times",
        ),
    ]  # fmt: skip


def _against(sections: Sections, key: str, what: str, goal: float, title: str, contender: str) -> record.Row:
    """Throughput against a competitor; where the rows can be sorted and chunked for it, what that gives is told too."""
    ours = "Turret, 32 pfeiffer" if title == PFEIFFERS else "Turret, 32 lora"
    detail = ""
    if f"{contender}, chunked" in sections[title]["figures"]:
        chunked = _ratio(sections, title, f"{contender}, chunked", ours)
        detail = f"{chunked:.1f} times where the harness sorts the rows by length and runs them 8 at a time for it"
    return record.goal(key, f"against {what}: throughput", goal, _ratio(sections, title, contender, ours), unit=" times", detail=detail)


def rates(sections: Sections, multiply_adds: int) -> record.Row:
    """Batches of each size, and their matrix rates."""
    columns = (
        "rows", "tokens", "transformers, padded", "Turret, bare", "one adapter", "an adapter per row", "padded / bare",
        "bare / an adapter per row", "linears",
        *(name.removeprefix(ROOFLINE) for name in _products(sections, SIXTY_FOUR)),
    )  # fmt: skip
    names = ("transformers, padded", "Turret, bare", "Turret, one adapter", "Turret, an adapter per row")
    rows = []
    for title, section in sections.items():
        if not title.startswith("a batch of"):
            continue
        work = 2 * multiply_adds * section["tokens"] / 1e6
        cells = [f"{_ms(sections, title, name):.1f} ms" for name in names]
        ratios = (_ratio(sections, title, names[0], names[1]), _ratio(sections, title, names[1], names[3]))
        speeds = [f"{work / _ms(sections, title, name):.0f}" for name in ("Turret, bare", *_products(sections, title))]
        rows.append([str(section["rows"]), f"{section['tokens']:.0f}", *cells, *(PER_CENT.format(ratio) for ratio in ratios), *speeds])
    note = (
        "Lengths are log-normal. The last columns are GFLOP/s (two for a multiply-add): of the bare forward's linears over its whole "
        "time, and of the same products alone, in all ways that torch has; the best one is the machine's rate."
    )
    return record.table("Batches of 1 to 64 rows", columns, rows, note)


def duels(sections: Sections) -> list[record.Row]:
    """Every section that is a duel: throughput and CPU time."""
    ours = {
        PFEIFFERS: "Turret, 32 pfeiffer", LORAS: "Turret, 32 lora", FUSIONS: "Turret, fusion of 8", RESIDENTS: "one adapter",
    }  # fmt: skip
    tables = []
    for title, reference in ours.items():
        section = sections[title]
        rows = [
            [
                name, f"{one['ms']:.1f} ms", f"{section['rows'] / one['ms'] * 1000:.0f}", f"{one['cpu ms'] / section['rows']:.2f} ms",
                PER_CENT.format(_ms(sections, title, name) / _ms(sections, title, reference)),
            ]
            for name, one in section["figures"].items()
        ]  # fmt: skip
        note = f"{section['tokens']:.0f} tokens a batch, batches drawn: {section['batches']}, rounds: {section['rounds']}."
        tables.append(record.table(title, ("contender", "a batch", "rows/s", "CPU time a row", f"time / {reference}"), rows, note))
    return tables


def matrix(sections: Sections) -> record.Row:
    """Turret with adapters against bare, by lengths and tasks."""
    titles = [title for title in sections if title.startswith("lengths ")]
    kinds = [name for name in sections[titles[0]]["figures"] if name != "bare"]
    rows = [
        [
            title.removeprefix("lengths "), str(sections[title]["rows"]), f"{_ms(sections, title, 'bare'):.1f} ms",
            *(PER_CENT.format(_ratio(sections, title, "bare", kind)) for kind in kinds),
        ]
        for title in titles
    ]  # fmt: skip
    note = "The speed that is left of the bare backbone's, on the same rows; up to 32 tasks with a Pfeiffer adapter each. Zipf is 1.5."
    return record.table("Lengths and tasks", ("tokens", "rows", "bare", *kinds), rows, note)


def parities(parity: Sequence[Mapping[str, Any]]) -> record.Row:
    """How far apart the outputs are."""
    rows = [[one["contender"], f"{one['difference']:.1e}", "" if one["from bare"] is None else f"{one['from bare']:.2g}"] for one in parity]
    note = "Largest difference of any number of the last hidden states of any token; the benchmark fails at 1e-4."
    return record.table("The same outputs", ("contender", "from Turret", "the adapters change"), rows, note)


def operators(sections: Sections) -> record.Row:
    """The profile of the bare forward at 64 rows."""
    profile = sections[SIXTY_FOUR]["profile"]
    rows = [[f"`{one['name']}`", f"{one['ms']:.1f} ms", f"{one['calls']:.0f}"] for one in profile["operators"]]
    note = f"torch's profiler, the mean of {profile['lanes']} lanes, of a run of {profile['whole ms']:.1f} ms; dearest first."
    return record.table("Where a bare forward of 64 mixed rows spends its time", ("operator", "own time", "calls"), rows, note)


def plots(sections: Sections) -> list[record.Row]:
    """Throughput and CPU time of each duel, batches of each size, and what is left of bare by lengths and tasks."""
    duels = (("engines-adapters", PFEIFFERS), ("engines-peft", LORAS), ("engines-fusion", FUSIONS))
    return [plot for file, title in duels for plot in _duel(sections, file, title)] + [_sizes(sections), _left(sections)]


def _duel(sections: Sections, file: str, title: str) -> list[record.Row]:
    figures, rows = sections[title]["figures"], sections[title]["rows"]
    speeds, costs = [rows / one["ms"] * 1000 for one in figures.values()], [one["cpu ms"] / rows for one in figures.values()]
    return [
        record.plot(f"{file}.png", title, "bars", list(figures), {"rows/s": speeds}, y="rows a second"),
        record.plot(f"{file}-cpu.png", f"{title}: CPU time", "bars", list(figures), {"ms": costs}, y="CPU ms a row"),
    ]


def _sizes(sections: Sections) -> record.Row:
    titles = [title for title in sections if title.startswith("a batch of")]
    names = [name for name in sections[SIXTY_FOUR]["figures"] if not name.startswith(ROOFLINE)]
    speeds = {name: [sections[title]["rows"] / _ms(sections, title, name) * 1000 for title in titles] for name in names}
    rows = [sections[title]["rows"] for title in titles]
    return record.plot("engines-sizes.png", "Batches of 1 to 64 rows", "lines", rows, speeds, "rows a batch", "rows a second", log=True)


def _left(sections: Sections) -> record.Row:
    titles = [title for title in sections if title.startswith("lengths ")]
    kinds = [name for name in sections[titles[0]]["figures"] if name != "bare"]
    left = {kind: [_ratio(sections, title, "bare", kind) for title in titles] for kind in kinds}
    labels = [title.removeprefix("lengths ") for title in titles]
    return record.plot("engines-matrix.png", "Speed left of the bare backbone's", "bars", labels, left, "tokens a row", "of bare")


def settings(about: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each contender's version and settings, as a sentence."""
    said = {name: ", ".join(f"{package} {version}" for package, version in one["versions"].items()) for name, one in about.items()}
    threads = {name: f"{one['threads']} threads" for name, one in about.items()}
    common = "float32, eval mode, torch.inference_mode, rows padded to the longest of a pass"
    return {
        "Turret": f"{said['Turret']}; its engine, fed directly, {about['Turret']['dtype']}, packed, {threads['Turret']}",
        "adapters": f"{said['adapters']}; SDPA attention ({about['adapters']['attention']}), {common}, {threads['adapters']}; per task "
        "group: set_active_adapters and one padded pass for each task; BatchSplit: one pass, rows in the order of their adapters; "
        "chunked: the harness sorts rows by length and runs 8 at a time",
        "PEFT": f"{said['PEFT']}; SDPA attention ({about['PEFT']['attention']}), {common}, {threads['PEFT']}; one pass with "
        "adapter_names, rows in the order of their adapters; chunked as above; bare: stock transformers, padded",
        "matrix products": "the products of the backbone's linears alone, without bias, in Turret's process, random numbers: torch.mm "
        "into memory that is there, and oneDNN's linear on a prepacked weight, with all threads on each product and with a thread for each "
        "part of the tokens",
    }
