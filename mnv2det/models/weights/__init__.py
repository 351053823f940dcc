"""Reading, writing and importing weights."""
