"""The data gate: reads all of a data set and lists all that is wrong with it, where a loader stops at the first."""
