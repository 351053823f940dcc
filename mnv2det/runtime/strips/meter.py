"""How many bytes of memory a piece of torch takes, measured by its allocator's own events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that torch's allocator on the CPU had given out at most, above what it had when the work began.

    Buffers that libraries below torch allocate by themselves are not among them.

    Args:
        work: Computes something; what it returns is counted, too, until it has returned.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    taken = most = 0
    for event in _changes(recorded.profiler.kineto_results):
        taken += event
        most = max(most, taken)
    return most


def _changes(recorded: Any) -> list[int]:
    """Bytes of each allocation, and less those of each release, in order."""
    events = [event for event in recorded.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
