"""Comparing two ways of computing the same numbers.

Another order of additions is another rounding, and which order a kernel takes depends on the processor and on the
number of threads. In float64 two ways agree to 1e-9 of the tensor's range on any of them. In float32 a value near zero,
the rest of a sum of large terms, keeps their absolute error: so the error is measured against the largest value of the
tensor, not against each value.
"""

from __future__ import annotations

import torch
from torch import Tensor

WITHIN = {torch.float64: 1e-9, torch.float32: 1e-4}  # as shares of the range; float32: some 50 layers of 6e-8 each


def assert_same_numbers(actual: Tensor, expected: Tensor, name: str = "values", *, within: float | None = None) -> None:
    """Asserts equal shapes and types, and a largest difference small beside the largest expected value.

    Args:
        actual: Of any shape, float32 or float64.
        expected: Likewise.
        name: Of the tensor, for the message.
        within: Largest difference as a share of the largest expected value; that of `WITHIN` for the type by default.
    """
    within = WITHIN[expected.dtype] if within is None else within
    limit = within * float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")
