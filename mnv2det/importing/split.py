"""Splitting pictures into train, val and test so that the metrics can be trusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mnv2det.check.run import Part
from mnv2det.data.duplicates import NEAR, Fingerprints, matches
from mnv2det.importing.gather import Kept
from mnv2det.labels.base import LabelledPicture, Role

ROLES: tuple[Role, ...] = ("train", "val", "test")
# frame numbers of one clip, and Roboflow's copies of one picture: "clip_frame_0012", "clip_mp4-12_jpg.rf.0f3a"
CLIP = re.compile(r"^(.*?)[-_ ]?(?:frame|frm|fr)[-_ ]?\d+$", re.IGNORECASE)
MOVIE = re.compile(r"^(.*?[-_.](?:mp4|avi|mov|mkv|webm|m4v))[-_]?\d+", re.IGNORECASE)
COPY = re.compile(r"^(.*?)(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9A-Za-z]{6,}$", re.IGNORECASE)


def clip_name(stem: str) -> str | None:
    """What pictures of one clip, or edited copies of one picture, have in common in their names; None for others."""
    copy = COPY.match(stem)
    stem = copy[1] if copy else stem
    clip = MOVIE.match(stem) or CLIP.match(stem)
    if clip:
        return clip[1].lower()
    return stem.lower() if copy else None


def group_pictures(names: Sequence[str], prints: Fingerprints) -> NDArray[np.int64]:
    """Pictures that must stay in one split: nearly the same picture, and frames of one clip.

    Args:
        names: N paths with forward slashes.
        prints: Their N fingerprints.

    Returns:
        int64 (N,): the number of each picture's group, in the order of their first pictures.
    """
    parent = np.arange(len(names))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(index: int, other: int) -> None:
        first, second = sorted((root(index), root(other)))
        parent[second] = first

    for index, other in enumerate(matches(prints, tolerance=NEAR).tolist()):
        if other >= 0:
            join(index, other)
    clips: dict[tuple[str, str], int] = {}
    for index, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        clip = clip_name(file.rpartition(".")[0] or file)
        if clip is not None:
            join(index, clips.setdefault((folder, clip), index))
    roots = [root(index) for index in range(len(names))]
    number: dict[int, int] = {}
    return np.array([number.setdefault(one, len(number)) for one in roots], np.int64)


def split_groups(
    groups: NDArray[np.int64], classes: Sequence[set[str]], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Draws a split for every picture, group by group, so that every class is spread as the shares say.

    The rarest class is dealt out first (Sechidis et al., "On the stratification of multi-label data", 2011). As long
    as a split lacks a class that is in as many groups as there are splits, it is served first.

    Args:
        groups: int64 (N,), from `group_pictures`.
        classes: The classes on each picture.
        shares: Share of each split; they sum to 1. The first one gets what is left over.
        seed: Another seed deals out differently.

    Returns:
        N names of splits.
    """
    count = int(groups.max(initial=-1)) + 1
    names = sorted(set().union(*classes))
    column = {name: number for number, name in enumerate(names)}
    # pictures in each group, and those with each class
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    table = np.zeros((count, len(names)))
    for group, on_picture in zip(groups.tolist(), classes, strict=True):
        for name in on_picture:
            table[group, column[name]] += 1
    parts = [name for name, share in shares.items() if share > 0]
    share = np.array([shares[name] for name in parts])
    wanted = share[:, None] * table.sum(axis=0)  # pictures of each class that a split still wants
    room = share * len(groups)
    has = np.zeros_like(wanted, np.bool_)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first: they are hard to place
    result = np.full(count, -1)

    def give(group: int, part: int) -> None:
        result[group] = part
        wanted[part] -= table[group]
        room[part] -= sizes[group]
        has[part] |= table[group] > 0

    while (left := np.flatnonzero(result < 0)).size and names:
        remaining = (table[left] > 0).sum(axis=0)
        if not remaining.any():
            break
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        members = [group for group in order.tolist() if result[group] < 0 and table[group, rarest] > 0]
        for number, group in enumerate(members):
            lacking = np.flatnonzero(~has[:, rarest])
            # the last groups of a class go to the splits without it, training first
            choices = lacking if lacking.size and len(members) - number <= lacking.size else np.arange(len(parts))
            urgent = bool(lacking.size and len(members) - number <= lacking.size)
            scores = [(wanted[part, rarest], room[part]) for part in choices.tolist()]
            best = 0 if urgent else max(range(len(scores)), key=scores.__getitem__)
            give(group, int(choices[best]))
    for group in order.tolist():
        if result[group] < 0:
            give(group, int(np.argmax(room)))
    return [parts[result[group]] for group in groups.tolist()]


def keep_or_draw(
    labelled: Mapping[str, list[Kept]], parts: Sequence[Part], shares: Mapping[str, float], seed: int
) -> tuple[dict[str, list[LabelledPicture]], list[str]]:
    """The pictures of each split, those of the source where it has them, and remarks.

    Without any split, all are drawn; without a validation split, it is drawn from the training pictures, and a test
    split that the source has stays as it is.
    """
    pools: dict[str, list[Kept]] = {role: list(labelled.get(role, [])) for role in (*ROLES, "all")}
    remarks = []
    if not pools["train"]:
        pools["train"], pools["all"] = pools["all"], []
    if not pools["train"]:
        only = max(("val", "test"), key=lambda role: len(pools[role]))
        remarks.append(f"the source has no pictures to train on but those of '{only}': splits were drawn from them")
        pools["train"], pools[only] = pools[only], []
    if pools["all"]:
        remarks.append(f"{len(pools['all'])} pictures of no split of the source went to train")
        pools["train"] += pools["all"]
    wanted = {role: share for role, share in shares.items() if role != "train" and share > 0 and not pools[role]}
    if any(pools[role] for role in ("val", "test")) and "test" in wanted:
        del wanted["test"]  # the source decided that there is none
    if wanted:
        wanted = {"train": 1 - sum(wanted.values()), **wanted}
        drawn = _draw(pools["train"], parts, wanted, seed, remarks)
        pools |= {
            role: [kept for kept, own in zip(pools["train"], drawn, strict=True) if own == role] for role in wanted
        }
    return {role: [kept[2] for kept in pools[role]] for role in ROLES if pools[role]}, remarks


def _draw(
    pool: Sequence[Kept], parts: Sequence[Part], shares: Mapping[str, float], seed: int, remarks: list[str]
) -> list[str]:
    """A split for each picture of a pool."""
    names = [picture.name for *_, picture in pool]
    prints = Fingerprints([parts[number].facts[index].fingerprint for number, index, _ in pool])
    groups = group_pictures(names, prints)
    classes = [{box.name for box in picture.boxes} | ({picture.label} - {""}) for *_, picture in pool]
    drawn = split_groups(groups, classes, shares, seed)
    together = Counter(groups.tolist())
    several = [count for count in together.values() if count > 1]
    if several:
        remarks.append(
            f"{sum(several)} pictures are nearly the same as another one, or frames of one clip;"
            f" they make {len(several)} groups, each of which stays in one split"
        )
    missing = [role for role in shares if role not in drawn]
    if missing and len(pool) >= len(shares):
        # one clip makes most of the pictures: its end is the least like its beginning
        order = sorted(range(len(pool)), key=lambda index: names[index])
        bounds = np.cumsum([0, *(round(share * len(pool)) for share in list(shares.values())[:-1])]).tolist()
        for role, first, last in zip(shares, bounds, [*bounds[1:], len(pool)], strict=True):
            for index in order[first:last]:
                drawn[index] = role
        remarks.append("most pictures are of one clip: they were split in the order of their names, so metrics flatter")
    return drawn
