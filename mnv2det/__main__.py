"""``python -m mnv2det``."""

from mnv2det.cli import run

run()
