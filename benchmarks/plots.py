"""Draws the plots that results describe (`record.plot`) as PNG files, with matplotlib (the `bench` extra)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

WIDTH, HEIGHT, DPI = 8.0, 4.5, 110


def draw(plot: Mapping[str, Any], folder: Path) -> Path:
    """Draws one plot to a file of its name in `folder`; returns the file."""
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    (_bars if plot["kind"] == "bars" else _lines)(axes, plot)
    if plot["log"]:
        axes.set_yscale("log")
    lying = plot["kind"] == "bars" and len(plot["series"]) == 1
    axes.set(title=plot["title"], xlabel=plot["y" if lying else "x"], ylabel=plot["x" if lying else "y"])
    axes.grid(axis="x" if lying else "y", alpha=0.3)
    if len(plot["series"]) > 1:
        axes.legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(plot["file"])
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return path


def _bars(axes: Any, plot: Mapping[str, Any]) -> None:
    """Groups of bars, one group a label; a single series lies on its side, so that long labels can be read."""
    labels, series = plot["labels"], plot["series"]
    if len(series) == 1:
        (values,) = series.values()
        axes.barh(labels[::-1], values[::-1])
        axes.bar_label(axes.containers[0], fmt="%.3g", padding=3)
        axes.margins(x=0.1)
        return
    places, width = np.arange(len(labels)), 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        axes.bar(places + (number - (len(series) - 1) / 2) * width, values, width, label=name)
    axes.set_xticks(places, labels)


def _lines(axes: Any, plot: Mapping[str, Any]) -> None:
    for name, values in plot["series"].items():
        axes.plot(plot["labels"], values, marker="o", label=name)
    if plot["log"]:
        axes.set_xscale("log")
        axes.set_xticks(plot["labels"], [str(label) for label in plot["labels"]])
