"""Weights of other PyTorch projects: `checkpoint` reads a file, `state_dict` chooses the mapper of its project."""
