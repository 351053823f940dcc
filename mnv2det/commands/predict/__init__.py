"""Predicting files, folders, videos and cameras."""
