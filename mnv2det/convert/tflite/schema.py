"""The numbers of the TFLite schema (tensorflow/lite/schema.fbs) that the reader needs."""

KINDS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 21: "RELU6", 22: "RESHAPE",
    23: "RESIZE_BILINEAR", 25: "SOFTMAX", 32: "CUSTOM", 34: "PAD", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB",
    43: "SQUEEZE", 45: "STRIDED_SLICE", 53: "CAST", 56: "ARG_MAX", 114: "QUANTIZE", 117: "HARD_SWISH",
}  # fmt: skip
PADDINGS = {0: "SAME", 1: "VALID"}
ACTIVATIONS = {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH"}
TYPES = {
    0: ("FLOAT32", "<f4"), 1: ("FLOAT16", "<f2"), 2: ("INT32", "<i4"), 3: ("UINT8", "u1"), 4: ("INT64", "<i8"),
    7: ("INT16", "<i2"), 9: ("INT8", "i1"),
}  # fmt: skip

Fields = dict[str, tuple[int, str, float]]  # attribute to number of the field, struct code and default
_POOL: Fields = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "filter_w": (3, "i", 0),
         "filter_h": (4, "i", 0), "activation": (5, "b", 0)}  # fmt: skip
# kind of operator to the type of its options table, and the fields that are read from it
OPTIONS: dict[str, tuple[int, Fields]] = {
    "CONV_2D": (1, {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0),
                    "activation": (3, "b", 0), "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)}),
    "DEPTHWISE_CONV_2D": (2, {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0),
                              "depth_multiplier": (3, "i", 0), "activation": (4, "b", 0),
                              "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)}),
    "AVERAGE_POOL_2D": (5, _POOL),
    "MAX_POOL_2D": (5, _POOL),
    "FULLY_CONNECTED": (8, {"activation": (0, "b", 0), "weights_format": (1, "b", 0)}),
    "SOFTMAX": (9, {"beta": (0, "f", 0.0)}),
    "CONCATENATION": (10, {"axis": (0, "i", 0), "activation": (1, "b", 0)}),
    "ADD": (11, {"activation": (0, "b", 0)}),
    "RESIZE_BILINEAR": (15, {"align_corners": (2, "?", False), "half_pixel_centers": (3, "?", False)}),
    "MEAN": (27, {"keep_dims": (0, "?", False)}),
}  # fmt: skip
# operators whose second input is an integer constant, and the attribute it becomes: a flat tuple of ints
CONSTANTS = {"RESHAPE": "shape", "MEAN": "axes", "PAD": "paddings", "RESIZE_BILINEAR": "size", "ARG_MAX": "axis"}
# transpositions into torch's layout: OHWI to OIHW, 1HWC to C1HW; (out, in) stays
WEIGHT_AXES = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}
