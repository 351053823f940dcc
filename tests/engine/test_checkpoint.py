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
