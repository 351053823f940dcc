"""Running a model, whatever library computes it; importing this registers the runtimes.

`predictor` is what users meet; `base` says what a runtime is, and a file of its own implements each.
"""

from mnv2det.runtime import litert_runtime, ncnn_runtime, onnx_runtime, openvino_runtime, torch_runtime

__all__ = ["litert_runtime", "ncnn_runtime", "onnx_runtime", "openvino_runtime", "torch_runtime"]
