"""ncnn files."""
