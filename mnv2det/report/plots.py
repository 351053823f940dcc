"""Plots of the paper's figures; they need matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnv2det.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = NDArray[np.float64]

DIMENSIONS = (2, 3, 5, 15, 30)  # of the spaces in the paper's figure 1
TURNS = 2.0  # of the spiral


def spiral(count: int = 1500) -> Points:
    """Points (count, 2) along a spiral around 0, from the inside out."""
    share = np.linspace(0.05, 1, count)
    angle = 2 * np.pi * TURNS * share
    return np.stack([share * np.cos(angle), share * np.sin(angle)], axis=1)


def through_relu(points: Points, dimension: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.bool_]]:
    """Embeds points by a random matrix T, applies ReLU, and projects back by T's pseudo-inverse (figure 1).

    Args:
        points: (N, 2).
        dimension: Of the space they are embedded in.
        rng: Draws T.

    Returns:
        The projected points, float64 (N, 2), and bool (N,): which of them ReLU has kept apart from their neighbours.
        These have at least two channels above 0 (appendix A, lemma 2).
    """
    matrix = rng.standard_normal((dimension, points.shape[1]))
    activations = np.maximum(points @ matrix.T, 0)
    return activations @ np.linalg.pinv(matrix).T, (activations > 0).sum(axis=1) >= points.shape[1]


def draw_spirals(path: Path, *, dimensions: Sequence[int] = DIMENSIONS, seed: int = 1) -> None:
    """Figure 1: what ReLU leaves of a spiral in spaces of different dimension.

    Args:
        path: The picture to write.
        dimensions: Of the spaces, one panel each.
        seed: Of the random matrices.

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
    for position, (title, shown) in enumerate(panels, 1):
        axes: Any = figure.add_subplot(1, len(panels), position)
        axes.scatter(*shown.T, c=np.linspace(0, 1, len(shown)), s=3, cmap="viridis")
        axes.set_title(title, fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path)


def draw_trade_off(path: Path, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Figure 5: accuracy against multiply-adds.

    Args:
        path: The picture to write.
        series: By legend, points of (multiply-adds in millions, top-1 in %). Series whose legends have the same
            first word share a marker.

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
            # matplotlib has ten colours: they go to the first two kinds, the rest is black
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
    path: Path, panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], *, figure: str
) -> None:
    """Figure 6: a metric of variants of the block in the course of training, as mean and deviation over seeds.

    Args:
        path: The picture to write.
        panels: By title of the panel and legend of the variant, a mapping for each seed from step to metric.
        figure: Name of the metric.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    drawn = _figure(5.2 * len(panels), 4)
    shared: Any = None
    for position, (title, variants) in enumerate(panels.items(), 1):
        axes: Any = drawn.add_subplot(1, len(panels), position, sharey=shared)
        shared = shared or axes
        for number, (legend, seeds) in enumerate(variants.items()):
            steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
            values = np.array([[seed[step] for step in steps] for seed in seeds])
            deviation = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
            # error bars stand side by side, so that none hides another
            shift = (number - (len(variants) - 1) / 2) * 0.012 * max(steps)
            axes.errorbar(
                np.array(steps) + shift, values.mean(axis=0), yerr=deviation, capsize=3, marker="osD^v"[number % 5],
                markersize=4, label=f"{legend} ({len(seeds)} seeds)",
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("training step")
        axes.set_ylabel(figure)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    drawn.savefig(path)


def _figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'mnv2det[plots]'") from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")
