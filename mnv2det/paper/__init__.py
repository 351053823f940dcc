"""The MobileNetV2 paper's tables beside what this code computes."""
