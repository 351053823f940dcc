"""Asking a run to stop without losing it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mnv2det.errors import Mnv2detError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
# torchrun passes on what the terminal has sent to all already: that is one request, not two
SAME_REQUEST_S = 1.0


class Interrupted(Mnv2detError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """SIGINT, SIGTERM and SIGUSR1 set the event: the step is finished and saved.

    Another one, a second or more later, ends the process at once, as it would have without this.
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
