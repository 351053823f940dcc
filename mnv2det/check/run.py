"""Checking the data of a config or a folder: what is wrong, and whether the anchors fit (docs/data.md)."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mnv2det.check.anchor_fit import AnchorFit, Detector, config_detector, default_detector, fit_anchors
from mnv2det.check.boxes import check_boxes
from mnv2det.check.classes import Counts, box_counts, check_classes
from mnv2det.check.files import DatasetInspector, PictureFacts, PictureFiles, inspect
from mnv2det.check.findings import KINDS, SEVERITIES, Finding
from mnv2det.check.fix import check_target, write_fixed
from mnv2det.check.folder import outside_links, recognise, unlisted
from mnv2det.check.parts import config_splits, read_parts
from mnv2det.check.pictures import check_duplicates, check_masks, check_pictures, mask_classes
from mnv2det.check.pool import Crash, parallel
from mnv2det.check.split import Array, Split, mask_counts
from mnv2det.config import Config, ConfigSource, Overrides, find_config, load_config
from mnv2det.engine.build import check
from mnv2det.engine.coverage import coverage_gap
from mnv2det.errors import ConfigError
from mnv2det.io import RunFolder, config_file
from mnv2det.registry import HEADS
from mnv2det.structures import IGNORE

FORMAT = 1


@dataclass
class Part:
    """One part of the data, judged.

    Attributes:
        split: What was read.
        facts: What its pictures hold.
        sizes: int64 (P, 2), (H, W) of each.
        good: bool (N,), boxes that are there to be learned from or ignored.
        counts: Those to be learned from, by class.
        pixels: Of masks, by class.
    """

    split: Split
    facts: list[PictureFacts]
    sizes: Array
    good: Array
    counts: Counts
    pixels: Counts


@dataclass
class Report:
    """What a check found.

    Attributes:
        source: As it was named.
        parts: In order.
        findings: Errors first, in the order of `KINDS`.
        anchors: How the detector's anchors fit; None without boxes or detector.
        remarks: Lines on what could not be known.
        fixed: Findings and what the cleaned copy did about them; None where none was asked for.
    """

    source: str
    parts: list[Part]
    findings: list[Finding]
    anchors: AnchorFit | None
    remarks: list[str] = field(default_factory=list)
    fixed: list[tuple[Finding, str]] | None = None

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        counts = Counter(finding.severity for finding in self.findings)
        return {severity: counts[severity] for severity in SEVERITIES}

    def to_json(self) -> dict[str, Any]:
        """The keys that docs/data.md promises."""
        kinds = Counter(finding.kind for finding in self.findings)
        return {
            "format": FORMAT,
            "source": self.source,
            "root": str(self.parts[0].split.root),
            "counts": self.counts(),
            "kinds": {
                kind: {"severity": KINDS[kind].severity, "title": KINDS[kind].title, "count": kinds[kind]}
                for kind in KINDS
                if kinds[kind]
            },
            "splits": {part.split.name: summary(part) for part in self.parts},
            "anchors": dataclasses.asdict(self.anchors) if self.anchors else None,
            "remarks": self.remarks,
            "findings": [finding.to_json() for finding in self.findings],
            "fixed": None
            if self.fixed is None
            else [{**finding.to_json(), "action": action} for finding, action in self.fixed],
        }


def check_data(
    source: ConfigSource,
    overrides: Overrides = (),
    *,
    workers: int = 1,
    size: tuple[int, int] | None = None,
    mask_count: int | None = None,
    fix: str | Path | None = None,
) -> Report:
    """Reads every picture and annotation of a data set and lists all that is wrong.

    There is an error if and only if training with ``bad_data: stop`` refuses the data, with one exception:
    ``image_leak``, the same picture in two splits, which training cannot see.

    Args:
        source: A folder in VOC's layout or with COCO-style json, or a config as `load_config` takes it.
        overrides: Of the config, as `load_config` takes them.
        workers: Processes that read; 0 reads in this one.
        size: (H, W) of the network's input, for the anchors; None takes the config's, 320x320 for a folder.
        mask_count: Number of mask classes, for a folder.
        fix: Where to write a cleaned copy.

    Raises:
        ConfigError: The config is wrong, or ``fix`` would write where it must not.
        DataError: There is no such data set at all, or no list or json of it can be read.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else "config"
    path, keyed = Path(os.path.normpath(name)), isinstance(source, Mapping | Config)
    config = load_config(source, overrides) if keyed else _config(find_config(path), overrides)
    aside: list[Finding] = []
    if config is None:
        folder_parts, aside = recognise(path, mask_count)
        splits = read_parts(folder_parts, path)
    else:
        if mask_count is not None:
            raise ConfigError("--mask-classes is for a folder: a config names its mask classes")
        check(config)
        splits = config_splits(config)
    if fix is not None:
        check_target(Path(fix), splits[0].root, splits)
    keys = None if config is None else {HEADS.get(task.head.name).target_key for task in config.tasks.values()}
    parts, findings = judge(splits, workers, keys)
    findings = aside + findings + (unlisted(splits) if config is None else [])
    remarks: list[str] = []
    anchors = None
    boxed = [part for part in parts if part.good.any()]
    # those that are to be learned, where it is known which
    boxed = [part for part in boxed if part.split.role == "train"] or boxed
    if boxed:
        detector = _detector(config, size, boxed[0], remarks)
        anchors = None if detector is None else fit_anchors(detector, *_boxes(boxed))
        if anchors is not None:
            findings += anchors.findings(boxed[0].split.name)
    order = {kind: (SEVERITIES.index(KINDS[kind].severity), number) for number, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: order[finding.kind])
    report = Report(name, parts, findings, anchors, remarks)
    if fix is not None:
        report.fixed = write_fixed(splits, findings, [part.sizes for part in parts], Path(fix))
    return report


def _config(path: Path, overrides: Overrides) -> Config | None:
    """The config that a path means, or None for a folder of data."""
    if not path.exists():
        raise ConfigError(f"{path}: no such config or folder")
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: expected a config (.yaml) or a folder of data")
    if not path.is_dir() or RunFolder(path).exists:
        return load_config(config_file(path), overrides)
    if overrides:
        raise ConfigError(f"{path}: is a folder; overrides such as '{next(iter(overrides))}' are for a config")
    return None


def judge(
    splits: Sequence[Split], workers: int, keys: Collection[str] | None = None
) -> tuple[list[Part], list[Finding]]:
    """Reads all pictures of the parts and collects everything that is wrong with them.

    Args:
        splits: From `mnv2det.check.parts`.
        workers: As of `check_data`.
        keys: Target keys that heads learn, ``labels`` and ``mask``; None looks at both.
    """
    facts = [_inspect_all(split, workers) for split in splits]
    guessed = mask_classes(splits, facts)
    findings: list[Finding] = []
    parts = []
    for split, of_pictures in zip(splits, facts, strict=True):
        if split.mask_names is None:
            split.mask_names = [f"id {number}" for number in range(guessed)]
        findings += [split.of_problem(problem) for problem in split.records.problems]
        picture_findings, sizes = check_pictures(split, of_pictures)
        box_findings, good = check_boxes(split, sizes)
        findings += picture_findings + box_findings
        findings += check_masks(split, of_pictures, sizes, len(split.mask_names))
        if split.format is not None:
            findings += outside_links(split)
        parts.append(Part(split, of_pictures, sizes, good, box_counts(split, good), _pixels(split, of_pictures)))
    boxed = [part for part in parts if part.split.boxed]
    if boxed:
        findings += check_classes([part.split for part in boxed], [part.counts for part in boxed])
    findings += (gaps := [gap for part in parts for gap in _coverage_gaps(part, keys or ("labels", "mask"))])
    masked = [part for part in parts if part.pixels]
    if masked and not any(gap.kind == "mask_binary" for gap in gaps):
        findings += check_classes([part.split for part in masked], [part.pixels for part in masked], unit="pixels")
    return parts, findings + check_duplicates(splits, facts)


def _inspect_all(split: Split, workers: int) -> list[PictureFacts]:
    """What every picture and mask of a part holds."""
    desc, records = f"{split.name}: images", split.records
    results: Sequence[PictureFacts | Crash]
    if split.dataset is not None:
        results = parallel(DatasetInspector(split.dataset), range(len(split.dataset)), workers, desc=desc, unit="image")
    else:
        classes = len(split.mask_names) if split.mask_names is not None else 255
        files = [
            PictureFiles(
                records.path(picture.file) if picture.file else None,
                records.path(picture.mask) if picture.mask else None,
                classes,
            )
            for picture in records.pictures
        ]
        results = parallel(inspect, files, workers, desc=desc, unit="image")
    facts = [
        PictureFacts(("image_broken", result.reason)) if isinstance(result, Crash) else result for result in results
    ]
    if split.dataset is not None:
        split.take_targets([fact.target for fact in facts])
    return facts


def _pixels(split: Split, facts: Sequence[PictureFacts]) -> dict[str, int]:
    """Pixels by mask class; empty without masks."""
    masks = [fact.mask.counts for fact in facts if fact.mask]
    if not masks or split.mask_names is None:
        return {}
    total = mask_counts(masks)
    if split.mask_guessed:
        return {split.mask_names[key]: pixels for key, pixels in total.items() if 0 <= key < len(split.mask_names)}
    return {name: total.get(key, 0) for key, name in enumerate(split.mask_names)}


def _coverage_gaps(part: Part, keys: Collection[str]) -> list[Finding]:
    """What makes a part useless as a whole, of boxes and of masks."""
    split, boxes = part.split, part.split.records.boxes
    gaps = []
    if split.boxed and "labels" in keys:
        ignored = int((part.good & boxes.ignore).sum())
        gaps.append(coverage_gap(split.role, "boxes", list(part.counts), list(part.counts.values()), ignored))
    if part.pixels and "mask" in keys:
        ignored = mask_counts([fact.mask.counts for fact in part.facts if fact.mask]).get(IGNORE, 0)
        gaps.append(coverage_gap(split.role, "mask pixels", list(part.pixels), list(part.pixels.values()), ignored))
    return [Finding(gap.kind, split.name, split.listing, gap.what) for gap in gaps if gap]


def _detector(config: Config | None, size: tuple[int, int] | None, part: Part, remarks: list[str]) -> Detector | None:
    if config is None:
        return default_detector(size or (320, 320))
    return config_detector(config, size, list(part.counts), remarks)


def _boxes(parts: Sequence[Part]) -> tuple[Array, Array, Array, list[str]]:
    """Boxes to learn from of all parts: clipped corners, their pictures' sizes, labels, and the labels' names."""
    names = list(dict.fromkeys(name for part in parts for name in part.counts))
    corners, sizes, labels = [], [], []
    for part in parts:
        boxes = part.split.records.boxes
        rows = part.good & ~boxes.ignore
        size = part.sizes[boxes.image[rows]]
        known = (size > 0).all(axis=1)
        corners.append(np.clip(boxes.corners[rows], 0, np.tile(size[:, ::-1], 2))[known])
        sizes.append(size[known])
        labels.append(boxes.labels_in(names)[rows][known])
    return np.concatenate(corners), np.concatenate(sizes), np.concatenate(labels), names


def summary(part: Part) -> dict[str, Any]:
    """One part in numbers, as docs/data.md lists them."""
    records, boxes = part.split.records, part.split.records.boxes
    used = part.good & ~boxes.ignore
    images = np.unique(np.stack([boxes.label[used], boxes.image[used]]), axis=1)[0]
    with_class = dict(zip(boxes.names, np.bincount(images, minlength=len(boxes.names)).tolist(), strict=True))
    sizes = Counter(f"{width}x{height}" for height, width in part.sizes.tolist() if height and width)
    boxed = {index for index, picture in enumerate(records.pictures) if picture.boxed}
    return {
        "about": part.split.about,
        "images": len(records.pictures),
        "readable": sum(fact.problem is None for fact in part.facts),
        "annotated": len(boxed),
        "without_boxes": len(boxed - set(boxes.image[part.good].tolist())),
        "boxes": int(used.sum()),
        "ignored": int((part.good & boxes.ignore).sum()),
        "classes": {name: {"boxes": number, "images": with_class.get(name, 0)} for name, number in part.counts.items()},
        "mask_pixels": dict(part.pixels),
        "picture_sizes": dict(sizes.most_common(20)),
        "distinct_sizes": len(sizes),
    }
