"""Plots of the paper's figures 1, 5 and 6; they need matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.io import import_optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = NDArray[np.float64]

DIMENSIONS = (2, 3, 5, 15, 30)  # of the spaces in the paper's figure 1
TURNS = 2.0  # of the spiral


def spiral(count: int = 1500) -> Points:
    """Points along a spiral around 0, from the inside out, float64 (count, 2)."""
    share = np.linspace(0.05, 1, count)
    angle = 2 * np.pi * TURNS * share
    return np.stack([share * np.cos(angle), share * np.sin(angle)], axis=1)


def through_relu(points: Points, dimension: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.bool_]]:
    """Embeds points by a random matrix T, applies ReLU, and projects back by T's pseudo-inverse (figure 1).

    Args:
        points: (N, 2).
        dimension: Dimension of the space they are embedded in.
        rng: Draws T.

    Returns:
        The points (N, 2) after projecting back, and for each (N,) whether ReLU leaves it distinct from its neighbours,
        which takes two positive channels (appendix A, lemma 2).
    """
    matrix = rng.standard_normal((dimension, points.shape[1]))
    activations = np.maximum(points @ matrix.T, 0)
    return activations @ np.linalg.pinv(matrix).T, (activations > 0).sum(axis=1) >= points.shape[1]


def draw_spirals(path: str | os.PathLike[str], *, dimensions: Sequence[int] = DIMENSIONS, seed: int = 1) -> None:
    """Draws figure 1: what ReLU leaves of a spiral in spaces of different dimension.

    Args:
        path: The picture to write.
        dimensions: Of the spaces, one panel each.
        seed: For the random matrices.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    rng, points = np.random.default_rng(seed), spiral()
    figure = _figure(2.4 * (len(dimensions) + 1), 2.8)
    panels: list[tuple[str, Points]] = [("input", points)]
    for dimension in dimensions:
        back, kept = through_relu(points, dimension, rng)
        panels.append((f"n = {dimension}: {kept.mean():.0%} kept", back))
    for number, (title, shown) in enumerate(panels, 1):
        axes: Any = figure.add_subplot(1, len(panels), number)
        axes.scatter(*shown.T, c=np.linspace(0, 1, len(shown)), s=3, cmap="viridis")
        axes.set_title(title, fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path)


def draw_trade_off(path: str | os.PathLike[str], series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draws figure 5: accuracy against multiply-adds.

    Args:
        path: The picture to write.
        series: Legend to (multiply-adds in millions, top-1 %). Legends with the same first word share a marker.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    figure = _figure(8, 5.5)
    axes: Any = figure.add_subplot()
    kinds = list(dict.fromkeys(name.split()[0] for name in series))
    for number, (name, points) in enumerate(series.items()):
        kind = kinds.index(name.split()[0])
        axes.plot(
            *zip(*points, strict=True),
            # there are ten colours, enough to distinguish the series of the two networks that are compared
            color=f"C{number}" if kind < 2 else "black",
            linestyle=("-", "--", ":", "-.")[kind % 4],
            marker="osD^v"[kind % 5],
            markersize=5,
            label=name,
        )
    axes.set_xscale("log")
    ticks = (10, 20, 50, 100, 200, 500)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("multiply-adds, millions (counted)")
    axes.set_ylabel("ImageNet top-1, % (published)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def draw_ablations(
    path: str | os.PathLike[str], panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], *, metric: str
) -> None:
    """Draws figure 6: a metric of variants of the block during training, as mean and standard deviation over seeds.

    Args:
        path: The picture to write.
        panels: Title of a panel to legend to a mapping from step to metric for each seed.
        metric: Name of the metric, for the axis.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    figure = _figure(5.2 * len(panels), 4)
    shared: Any = None
    for panel, (title, variants) in enumerate(panels.items(), 1):
        axes: Any = figure.add_subplot(1, len(panels), panel, sharey=shared)
        shared = shared or axes
        for number, (legend, seeds) in enumerate(variants.items()):
            steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
            values = np.array([[seed[step] for step in steps] for seed in seeds])
            deviation = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
            # the error bars of variants stand beside each other, so that none is hidden
            shift = (number - (len(variants) - 1) / 2) * 0.012 * max(steps)
            axes.errorbar(
                np.array(steps) + shift, values.mean(axis=0), yerr=deviation, capsize=3, marker="osD^v"[number % 5],
                markersize=4, label=f"{legend} ({len(seeds)} seeds)",
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("training step")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    module = import_optional("matplotlib.figure", "plots")
    figure: Figure = module.Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure
