"""Predicts files, folders, videos and cameras."""
