"""What labelling tools write: a file per format, which recognises, reads and writes it."""
