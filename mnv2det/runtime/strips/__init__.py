"""Inference within a memory budget: bottlenecks computed strip by strip (paper, section 5.1)."""
