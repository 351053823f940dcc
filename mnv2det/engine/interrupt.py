"""Signals that ask a run to stop without losing its progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mnv2det.errors import Mnv2detError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
# torchrun passes on a signal that the terminal has already sent to all: that is one request, not two
SAME_REQUEST_S = 1.0


class Interrupted(Mnv2detError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Lets SIGINT, SIGTERM and SIGUSR1 set an event, after which the run finishes its step and saves.

    Another one, a second or more later, ends the process at once, as the first one does outside this
    block.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    first = 0.0

    def request(number: int, _: object) -> None:
        nonlocal first
        if event.is_set():
            if time.monotonic() - first >= SAME_REQUEST_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        first = time.monotonic()
        event.set()
        os.write(2, b"\nstopping after this step, then saving; once more ends it at once ...\n")

    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
