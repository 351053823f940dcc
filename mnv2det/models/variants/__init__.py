"""The backbones that the paper compares MobileNetV2 with."""
