"""What the verbs of the command line do that belongs to no other room."""
