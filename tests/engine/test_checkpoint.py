from mnv2det.engine.checkpoint import changed_keys


def test_changed_keys_are_dotted_with_both_values():
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": 0}
    now = {"a": 1, "b": {"c": [1, 3], "d": None}, "new": 5}
    assert changed_keys(before, now) == ["b.c ([1, 2] -> [1, 3])", "gone (0 -> None)", "new (None -> 5)"]
    assert changed_keys(before, before) == []
