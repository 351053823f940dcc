"""Cuts small square pictures for classification out of pictures with masks: a patch's class is that of its centre.

    python datasets/patches.py configs/deeplabv3_camvid.yaml data.root=DATA --out DATA/patches

Writes OUT/train/CLASS/*.png and OUT/val/CLASS/*.png from the config's training and validation set, the layout that the
data set 'imagefolder' reads. Every picture gives up to --per-class patches of each class it shows, at random positions
that depend on the seed alone. Where a patch reaches beyond the border, the picture is mirrored.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from tqdm import tqdm

from mnv2det.config import Config, load_config
from mnv2det.data.dataset import Dataset
from mnv2det.engine.build import build_dataset
from mnv2det.errors import ConfigError, DataError, Mnv2detError

SPLITS = ("train", "val")


def cut(dataset: Dataset, folder: Path, *, size: int, per_class: int, seed: int, title: str) -> dict[str, int]:
    """Writes the patches of one data set.

    Args:
        dataset: Its samples need ``mask``.
        folder: Where the classes' folders are made.
        size: Side of a patch, pixels.
        per_class: Most patches of a class from one picture.
        seed: Of the random positions.
        title: Title of the progress bar.

    Returns:
        Number of patches by class.

    Raises:
        DataError: A sample has no mask, or cannot be read.
    """
    names = dataset.classes["mask"]
    counts = dict.fromkeys(names, 0)
    for name in names:
        (folder / name).mkdir(parents=True)
    half = size // 2
    for index in tqdm(range(len(dataset)), desc=title, unit="picture", leave=False):
        sample = dataset.read(index)
        if "mask" not in sample.target:
            raise DataError(f"{sample.image_id}: has no mask to cut patches by")
        rng = np.random.default_rng((seed, index))
        wide = cv2.copyMakeBorder(sample.image, half, size - half, half, size - half, cv2.BORDER_REFLECT)
        for label, name in enumerate(names):
            ys, xs = np.nonzero(sample.target["mask"] == label)
            for place in rng.choice(len(ys), min(per_class, len(ys)), replace=False):
                y, x = int(ys[place]), int(xs[place])
                patch = np.ascontiguousarray(wide[y : y + size, x : x + size, ::-1])
                stem = re.sub(r"\W+", "_", str(sample.image_id))
                if not cv2.imwrite(str(folder / name / f"{stem}_{y}_{x}.png"), patch):
                    raise OSError(f"{folder / name}: cannot write")
                counts[name] += 1
    return counts


def build(config: Config, output: Path, *, size: int, per_class: int, seed: int) -> dict[str, dict[str, int]]:
    """Writes the patches of both splits, or nothing.

    Returns:
        Number of patches by split and class.

    Raises:
        ConfigError: The config has no masks.
        DataError: The output is there already, or a picture cannot be read.
    """
    if output.exists():
        raise DataError(f"{output}: is there already; remove it or name another")
    sets = {split: build_dataset(config, split) for split in SPLITS}
    for split, dataset in sets.items():
        if "mask" not in dataset.classes:
            raise ConfigError(f"data.{split}: has no masks; expected the config of a segmenter")
        unfit = [name for name in dataset.classes["mask"] if name in (".", "..") or "/" in name]
        if unfit:
            raise ConfigError(f"data.{split}: class '{unfit[0]}' cannot be a folder's name")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        counts = {
            split: cut(dataset, part / split, size=size, per_class=per_class, seed=seed, title=split)
            for split, dataset in sets.items()
        }
        part.chmod(0o755)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("``", "'"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML whose data sets have masks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, as in data.root=DATA")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="side of a patch (default: %(default)s)")
    parser.add_argument(
        "--per-class",
        type=int,
        default=4,
        metavar="N",
        help="most patches of one class from one picture (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the positions (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        if given.size < 8 or given.per_class < 1 or given.seed < 0:
            raise ConfigError("--size must be at least 8, --per-class at least 1, --seed at least 0")
        config = load_config(given.config, given.overrides)
        counts = build(config, Path(given.out), size=given.size, per_class=given.per_class, seed=given.seed)
    except (Mnv2detError, OSError) as error:
        print(f"patches.py: {error}", file=sys.stderr)
        return 2
    for split, found in counts.items():
        each = ", ".join(f"{name} {count}" for name, count in found.items())
        print(f"{split}: {sum(found.values())} patches ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
