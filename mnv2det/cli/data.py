"""The verbs that look at data."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mnv2det.cli.common import add_json, new_verb, write_json_file
from mnv2det.errors import ConfigError, near

if TYPE_CHECKING:
    from mnv2det.check.anchor_fit import AnchorFit
    from mnv2det.check.findings import Finding
    from mnv2det.check.run import Report

MOST_CLASSES = 20  # rows of the table of classes

IMPORTS = """
mnv2det data import photos/ -o data/photos --weights coco
mnv2det data import export.roboflow/ -o data/cells --test 0 --link"""
EXPORTS = "mnv2det data export data/cells --format yolo -o cells_yolo"
IMPORT_CODES = "exit codes: 0 done, 2 your mistake or no labels that can be used, 130 interrupted"
CHECKS = """
mnv2det data check configs/ssdlite_bccd.yaml data.root=/data
mnv2det data check photos/ --json findings.json --strict
mnv2det data check photos/ --fix photos_clean"""
CHECK_CODES = "exit codes: 0 no errors, 1 errors (with --strict: or warnings), 2 your mistake, 130 interrupted"


def add(verbs: Any) -> None:
    """Adds the verbs of ``data`` to the command line."""
    examples = f"{IMPORTS}\n{EXPORTS}{CHECKS}"
    parent = new_verb(verbs, "data", None, "import, export and check data sets", examples=examples)
    below = parent.add_subparsers(metavar="VERB", required=True)
    _add_import(below)
    _add_export(below)
    about = "list all that is wrong with the data of a config or folder"
    verb = new_verb(below, "check", _check, about, examples=CHECKS, codes=CHECK_CODES)
    verb.add_argument(
        "source", metavar="CONFIG_OR_FOLDER", help="a YAML of configs/, or a folder in VOC's layout or with COCO json"
    )
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")
    add_json(verb)
    verb.add_argument("--fix", metavar="DIR", help="write a cleaned copy to this new folder; the source stays as it is")
    verb.add_argument("--workers", type=int, metavar="N", help="reading processes (default: one per core)")
    verb.add_argument(
        "--limit-per-kind", type=int, default=5, metavar="N", help="findings printed of a kind (default: %(default)s)"
    )
    verb.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input the anchors are for (default: the config's, or 320)",
    )
    verb.add_argument("--mask-classes", type=int, metavar="N", help="number of mask classes, for a folder")
    verb.add_argument("--allow", action="append", default=[], metavar="KIND", help="findings of this kind do not fail")
    verb.add_argument("--strict", action="store_true", help="warnings fail, too")


def _add_import(verbs: Any) -> None:
    about = "make a data set of what any labelling tool wrote"
    verb = new_verb(verbs, "import", _import, about, examples=IMPORTS, codes=IMPORT_CODES)
    verb.add_argument("source", metavar="SOURCE", help="folder with pictures and labels; it stays as it is")
    verb.add_argument("-o", "--out", required=True, metavar="DIR", help="new folder for the data set")
    verb.add_argument("--format", metavar="NAME", help="label format of SOURCE (default: it is recognised)")
    verb.add_argument(
        "--val", type=float, default=0.2, metavar="SHARE",
        help="share of the pictures for validation, where SOURCE has no such split (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--test", type=float, default=0.1, metavar="SHARE",
        help="share for a test, where SOURCE has no splits; 0 makes none (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="another one draws other splits (default: 0)")
    verb.add_argument(
        "--mask-names", metavar="LIST", help="classes of masks in the order of their ids, as in background,road,sky"
    )
    verb.add_argument(
        "--weights",
        metavar="FILE",
        help="weights that training starts from: a file, or a name of those that 'mnv2det weights list' shows, such as"
        " coco or imagenet (default: those in weights/, or that were fetched before)",
    )
    verb.add_argument(
        "--tasks", metavar="LIST",
        help="what the config is for: det, seg, cls or det,seg (default: boxes if there are any, else masks)",
    )  # fmt: skip
    aim = verb.add_mutually_exclusive_group()
    aim.add_argument("--fast", action="store_true", help="a config with a smaller input and a shorter training")
    aim.add_argument("--accurate", action="store_true", help="a config with a larger input and a longer training")
    verb.add_argument(
        "--no-estimate", action="store_true", help="do not time training steps to say how long a training takes"
    )
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the pictures (the default)")
    how.add_argument("--link", action="store_true", help="make hard links to them where the file system can")
    verb.add_argument("--workers", type=int, metavar="N", help="reading processes (default: one per core)")


def _add_export(verbs: Any) -> None:
    about = "write an imported data set for another tool"
    verb = new_verb(verbs, "export", _export, about, examples=EXPORTS, codes=IMPORT_CODES)
    verb.add_argument("folder", metavar="DIR", help="folder that data import wrote, or any that it reads")
    verb.add_argument("--format", required=True, metavar="NAME", help="label format to write")
    verb.add_argument("-o", "--out", required=True, metavar="OUT", help="new folder")
    verb.add_argument("--link", action="store_true", help="make hard links to the pictures where the file system can")
    verb.add_argument("--workers", type=int, metavar="N", help="reading processes (default: one per core)")


def _import(args: argparse.Namespace) -> int:
    from mnv2det.importing.folder import RECORD
    from mnv2det.importing.import_data import import_data

    if not (0 < args.val < 1 and 0 <= args.test < 1 and args.val + args.test < 1):
        raise ConfigError(
            f"--val {args.val:g} --test {args.test:g}: expected shares from 0 to 1 that leave some to train"
        )
    from mnv2det.commands.weights import provide

    provide(args.weights)
    result = import_data(
        args.source,
        args.out,
        name=args.format,
        val=args.val,
        test=args.test,
        seed=args.seed,
        link=args.link,
        mask_names=[name.strip() for name in args.mask_names.split(",")] if args.mask_names else None,
        weights=args.weights,
        tasks=_tasks(args.tasks),
        estimate=not args.no_estimate,
        speed="fast" if args.fast else "accurate" if args.accurate else "balanced",
        workers=_workers(args),
    )
    print(f"{args.source}: {result.about}")
    for role, count in result.counts.items():
        print(f"  {role:<8}{count['pictures']:>8} pictures{count['boxes']:>9} boxes")
    names = ", ".join(result.classes[:MOST_CLASSES]) + (" ..." if len(result.classes) > MOST_CLASSES else "")
    if names:
        print(f"  {len(result.classes)} classes: {names}")
    for remark in result.remarks:
        print(f"note: {remark}")
    for kind, times in Counter(entry["kind"] for entry in result.left_out).items():
        example = next(entry for entry in result.left_out if entry["kind"] == kind)
        print(f"left out: {times} x {kind}, such as {example['file']}: {example['reason']}")
    if result.left_out:
        print(f"  all of them: {result.folder / RECORD}")
    for line in result.config_lines:
        print(f"config: {line}")
    print(f"{'done already' if result.done_before else 'written'}: {result.folder}")
    print(f"next: mnv2det train {shlex.quote(str(result.folder))}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from mnv2det.importing.export_data import export_data

    lines = export_data(args.folder, args.out, name=args.format, link=args.link, workers=_workers(args))
    for line in lines:
        print(f"note: {line}")
    print(f"written: {args.out}")
    return 0


def _tasks(text: str | None) -> list[Any]:
    tasks = [task.strip() for task in text.split(",")] if text else []
    if text and (len(set(tasks)) < len(tasks) or not ({*tasks} <= {"det", "seg"} or tasks == ["cls"])):
        raise ConfigError(f"--tasks {text}: expected det, seg, det,seg or cls")
    return tasks


def _workers(args: argparse.Namespace) -> int:
    from mnv2det.io import cores

    workers: int = cores() if args.workers is None else args.workers
    if workers < 1:
        raise ConfigError(f"--workers {workers}: expected at least 1")
    return workers


def _check(args: argparse.Namespace) -> int:
    from mnv2det.check.findings import KINDS
    from mnv2det.check.run import check_data

    allowed = {kind for text in args.allow for kind in text.split(",")}
    for kind in sorted(allowed - KINDS.keys()):
        raise ConfigError(f"--allow {kind}: no such kind of finding{near(kind, KINDS)}")
    workers = _workers(args)
    if args.limit_per_kind < 0 or (args.size and min(args.size) < 32):
        raise ConfigError("--limit-per-kind must be at least 0, --size 32")
    if args.mask_classes is not None and not 1 <= args.mask_classes <= 255:
        raise ConfigError("--mask-classes must be from 1 to 255")
    report = check_data(
        args.source,
        args.overrides,
        workers=workers,
        size=tuple(args.size) if args.size else None,
        mask_count=args.mask_classes,
        fix=args.fix,
    )
    write_json_file(args, report.to_json())
    for line in _lines(report, args.limit_per_kind, args.json):
        print(line)
    if report.fixed is not None:
        _print_fixed(report, args.fix)
    failing = {"error", "warning"} if args.strict else {"error"}
    return int(any(finding.severity in failing and finding.kind not in allowed for finding in report.findings))


def _lines(report: Report, limit: int, json: str | None) -> Iterable[str]:
    """The report as people read it: what was checked, in numbers; what is wrong; what to do."""
    from mnv2det.check.findings import KINDS, SEVERITIES
    from mnv2det.check.run import summary

    summaries = {part.split.name: summary(part) for part in report.parts}
    yield from (f"{name}: {numbers['about']}" for name, numbers in summaries.items())
    yield ""
    yield from _table(summaries)
    yield from _class_table(summaries, "classes", "boxes")
    yield from _class_table(summaries, "mask_pixels", "pixels")
    yield from _anchors(report.anchors)
    for remark in report.remarks:
        yield f"not known: {remark}"
    counts = report.counts()
    yield ", ".join(f"{counts[severity]} {severity}s" for severity in SEVERITIES)
    for kind, group in groupby(report.findings, key=lambda finding: finding.kind):
        findings = list(group)
        about = KINDS[kind]
        yield ""
        yield f"{about.severity}: {about.title} ({kind}: {len(findings)})"
        for finding in findings[:limit]:
            yield f"  {_text(finding)}"
        if len(findings) > limit:
            yield f"  and {len(findings) - limit} more ({'see ' + json if json else '--json FILE lists all'})"
        yield f"  -> {about.advice}" + (f"; --fix: {about.fix}" if about.fix and report.fixed is None else "")


def _text(finding: Finding) -> str:
    place = f"{finding.split} {finding.file}".strip()
    if finding.annotation is not None:
        place += f" annotation {finding.annotation}"
    return f"{place}: {finding.value}" + (f"; expected {finding.expected}" if finding.expected else "")


def _table(summaries: dict[str, dict[str, Any]]) -> Iterable[str]:
    yield f"{'':<16}{'images':>8}{'readable':>10}{'no boxes':>10}{'boxes':>9}{'ignored':>9}  picture sizes"
    for name, numbers in summaries.items():
        sizes = list(numbers["picture_sizes"].items())
        if numbers["distinct_sizes"] == 1:
            text = sizes[0][0]
        else:
            most = f", most often {sizes[0][0]} ({sizes[0][1]})" if sizes else ""
            text = f"{numbers['distinct_sizes']} different{most}"
        yield (
            f"{name[:15]:<16}{numbers['images']:>8}{numbers['readable']:>10}{numbers['without_boxes']:>10}{numbers['boxes']:>9}"
            f"{numbers['ignored']:>9}  {text}"
        )
    yield ""


def _class_table(summaries: dict[str, dict[str, Any]], key: str, unit: str) -> Iterable[str]:
    """Counts by class, the most frequent first."""
    from mnv2det.data.formats.problems import shown

    columns = {name: numbers[key] for name, numbers in summaries.items() if numbers[key]}
    if not columns:
        return
    counts = {
        name: {label: n["boxes"] if isinstance(n, dict) else n for label, n in column.items()}
        for name, column in columns.items()
    }
    total: Counter[str] = Counter()
    for column in counts.values():
        total.update(column)
    yield f"{unit + ' by class':<28}" + "".join(f"{name[:14]:>15}" for name in columns)
    for label, _ in total.most_common(MOST_CLASSES):
        yield f"{shown(label, 24):<28}" + "".join(f"{column.get(label, 0):>15}" for column in counts.values())
    if len(total) > MOST_CLASSES:
        yield f"and {len(total) - MOST_CLASSES} classes with fewer"
    yield ""


def _anchors(fit: AnchorFit | None) -> Iterable[str]:
    from mnv2det.data.formats.problems import shown

    if fit is None:
        return
    height, width = fit.input_size
    yield (
        f"anchors of {fit.detector} at {height}x{width}, {fit.fit}: {fit.without:.1%} of {fit.boxes} boxes have none of"
        f" IoU {fit.threshold:g} or more"
    )
    parts = [f"{name} {row['without']:.0%} of {row['boxes']}" for name, row in fit.sizes.items() if row["boxes"]]
    yield f"  by size in the input: {', '.join(parts)} (small is below 32x32 pixels, large from 96x96)"
    worst = sorted(fit.classes.items(), key=lambda item: -item[1]["without"])[:8]
    yield "  by class: " + ", ".join(f"{shown(name, 24)} {row['without']:.0%} of {row['boxes']}" for name, row in worst)
    low, *_, high = fit.side_percentiles
    yield (
        f"  boxes measure {low:g} to {high:g} pixels (5 to 95 %), anchors {fit.anchor_sides[0]:g} to"
        f" {fit.anchor_sides[1]:g}"
    )
    yield ""


def _print_fixed(report: Report, target: str) -> None:
    from mnv2det.check.findings import KINDS

    assert report.fixed is not None
    done = Counter((finding.kind, action) for finding, action in report.fixed)
    print(f"\ncleaned copy: {target}")
    for (kind, action), count in done.items():
        if action:
            print(f"  {count} x {KINDS[kind].title}: {action}")
    left = [f"{KINDS[kind].title} ({count})" for (kind, action), count in done.items() if not action]
    if left:
        print(f"left for you, unchanged in the copy: {', '.join(left)}")
