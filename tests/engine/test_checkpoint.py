import json
from pathlib import Path

from mnv2det.engine.log import RunLog
from mnv2det.engine.resume import changes


def test_changes_are_dotted_with_both_values():
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": 0}
    now = {"a": 1, "b": {"c": [1, 3], "d": None}, "new": 5}
    assert [str(change) for change in changes(before, now)] == [
        "b.c ([1, 2] -> [1, 3])",
        "gone (0 -> None)",
        "new (None -> 5)",
    ]
    assert changes(before, before) == []


def test_lines_after_the_checkpoint_and_damaged_ones_are_dropped(tmp_path: Path):
    kept = [{"kind": "train", "step": 3}, {"kind": "eval", "step": 2}, {"kind": "train", "step": 4}]
    later = ['{"kind": "train", "step": 5}', '{"kind": "eval", "step": 4}']
    damaged = ['{"kind": "train", "st', "[]", '{"step": 1}']
    lines = [*map(json.dumps, kept), *later, *damaged]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"kind": "\xff\xfe')
    RunLog(str(tmp_path), active=True, step=4, evaluated=2).write(kind="train", step=5, loss=float("nan"))
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == [*kept, {"kind": "train", "step": 5, "loss": None}]
