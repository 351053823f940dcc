"""Running a model, whatever library computes it: `Predictor` and the runtimes behind it."""
