"""TensorFlow's SAME padding."""

from __future__ import annotations


def same_padding(size: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """How much TensorFlow's SAME adds before and after an axis, so that ``ceil(size / stride)`` positions come out.

    Where the sum is odd, one more is added after the axis than before it. ``size`` may be the symbolic size
    of a traced tensor.

    Args:
        size: Length of the axis.
        kernel: Length of the kernel.
        stride: Step from one position to the next.
        dilation: Distance of the kernel's elements.

    Returns:
        What is added before, and what is added after.
    """
    reach = dilation * (kernel - 1) + 1
    # no negative number is divided: ONNX rounds such quotients towards zero, Python downwards
    total = ((size + stride - 1) // stride - 1) * stride + reach - size
    if reach < stride:  # only then can the last window end before the axis does
        total = max(total, 0)
    return total // 2, total - total // 2
