"""From labelled pictures of any tool to a data set with a config, and back."""
