"""Files of TensorFlow, read without it: frozen graphs, saved models, checkpoints, models of TensorFlow.js."""
