#!/usr/bin/env python3
"""Runs ``mnv2det train`` from a checkout that is not installed: tools/train.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnv2det.cli import tool

if __name__ == "__main__":
    tool("train")
