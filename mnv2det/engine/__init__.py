"""Building, training and evaluating what a config describes."""
