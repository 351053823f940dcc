"""The data gate: reads a whole data set and lists everything that is wrong with it."""
