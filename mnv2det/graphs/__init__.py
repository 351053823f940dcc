"""From a model of ours to the graph that other runtimes execute."""
