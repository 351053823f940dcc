"""Foreign weight files converted into ours."""
