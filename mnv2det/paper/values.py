"""The numbers that the paper prints (Sandler et al., MobileNetV2, arXiv 1801.04381, version 4)."""

from __future__ import annotations

# Table 2, "MobileNetV2": input (side x channels at 224), operator, t, c, n, s
TABLE_2 = (
    ("224 x 3", "conv2d", "-", "32", "1", "2"),
    ("112 x 32", "bottleneck", "1", "16", "1", "1"),
    ("112 x 16", "bottleneck", "6", "24", "2", "2"),
    ("56 x 24", "bottleneck", "6", "32", "3", "2"),
    ("28 x 32", "bottleneck", "6", "64", "4", "2"),
    ("14 x 64", "bottleneck", "6", "96", "3", "1"),
    ("14 x 96", "bottleneck", "6", "160", "3", "2"),
    ("7 x 160", "bottleneck", "6", "320", "1", "1"),
    ("7 x 320", "conv2d 1x1", "-", "1280", "1", "1"),
)

# Table 3: side of the map to the most channels and KB (16 bit, input 224) of MobileNetV1, MobileNetV2, ShuffleNet
TABLE_3 = {
    112: (("64", "1600"), ("16", "400"), ("32", "800")),
    56: (("128", "800"), ("32", "200"), ("48", "300")),
    28: (("256", "400"), ("64", "100"), ("400", "600")),
    14: (("512", "200"), ("160", "62"), ("800", "310")),
    7: (("1024", "199"), ("320", "32"), ("1600", "156")),
    1: (("1024", "2"), ("1280", "2"), ("1600", "3")),
}
TABLE_3_MAX = ("1600", "400", "600")

# Table 4: top-1 %, parameters M, multiply-adds M, ms on one large core of a Pixel 1
TABLE_4 = {
    "MobileNetV1": ("70.6", "4.2", "575", "113"),
    "ShuffleNet (1.5)": ("71.5", "3.4", "292", None),
    "ShuffleNet (x2)": ("73.7", "5.4", "524", None),
    "NasNet-A": ("74.0", "5.3", "564", "183"),
    "MobileNetV2": ("72.0", "3.4", "300", "75"),
    "MobileNetV2 (1.4)": ("74.7", "6.9", "585", "143"),
}

# The authors' released checkpoints (tensorflow/models, research/slim/nets/mobilenet/README.md), which Figure 5 plots:
# width to parameters M, and input size to multiply-adds M and top-1 %
CHECKPOINTS = {
    1.4: ("6.06", {224: ("582", "75.0")}),
    1.3: ("5.34", {224: ("509", "74.4")}),
    1.0: ("3.47", {224: ("300", "71.8"), 192: ("221", "70.7"), 160: ("154", "68.8"), 128: ("99", "65.3"),
                   96: ("56", "60.3")}),
    0.75: ("2.61", {224: ("209", "69.8"), 192: ("153", "68.7"), 160: ("107", "66.4"), 128: ("69", "63.2"),
                    96: ("39", "58.8")}),
    0.5: ("1.95", {224: ("97", "65.4"), 192: ("71", "63.9"), 160: ("50", "61.0"), 128: ("32", "57.7"),
                   96: ("18", "51.2")}),
    0.35: ("1.66", {224: ("59", "60.3"), 192: ("43", "58.2"), 160: ("30", "55.7"), 128: ("20", "50.8"),
                    96: ("11", "45.5")}),
}  # fmt: skip

# MobileNetV1's checkpoints in Figure 5 (research/slim/nets/mobilenet_v1.md, 2018-02-22): width to input size to top-1 %
CHECKPOINTS_V1 = {
    1.0: {224: "70.9", 192: "70.0", 160: "68.0", 128: "65.2"},
    0.75: {224: "68.4", 192: "67.2", 160: "65.3", 128: "62.1"},
    0.5: {224: "63.3", 192: "61.7", 160: "59.1", 128: "56.3"},
    0.25: {224: "49.8", 192: "47.7", 160: "45.5", 128: "41.5"},
}

# Table 5, heads on MobileNetV2, 80 classes: parameters M, multiply-adds B
TABLE_5 = {"SSD": ("14.8", "1.25"), "SSDLite": ("2.1", "0.35")}

# Table 6, COCO trainval35k to test-dev, 320: mAP %, parameters M, multiply-adds B, ms on a Pixel 1
TABLE_6 = {
    "SSD300": ("23.2", "36.1", "35.2", None),
    "SSD512": ("26.8", "36.1", "99.5", None),
    "YOLOv2": ("21.6", "50.7", "17.5", None),
    "MNet V1 + SSDLite": ("22.2", "5.1", "1.3", "270"),
    "MNet V2 + SSDLite": ("22.1", "4.3", "0.8", "200"),
}

# Table 7, PASCAL VOC 2012 val: network, output stride, ASPP, MF (six scales, mirrored); mIoU %, parameters M,
# multiply-adds B
TABLE_7 = {
    ("MNet V1", 16, True, False): ("75.29", "11.15", "14.25"),
    ("MNet V1", 8, True, True): ("78.56", "11.15", "941.9"),
    ("MNet V2", 16, True, False): ("75.70", "4.52", "5.8"),
    ("MNet V2", 8, True, True): ("78.42", "4.52", "387"),
    ("MNet V2", 16, False, False): ("75.32", "2.11", "2.75"),
    ("MNet V2", 8, False, True): ("77.33", "2.11", "152.6"),
    ("ResNet-101", 16, True, False): ("80.49", "58.16", "81.0"),
    ("ResNet-101", 8, True, True): ("82.70", "58.16", "4870.6"),
}

_NEXT_ROW = (
    "The channels of the next row of Table 2: those of a network that halves its map before the rows of 24, 64, 96 and"
    " 320 channels. The one that Table 2 describes, which every other table follows, has fewer here; the maximum is"
    " the same."
)
_ATROUS = (
    "Does not follow from the architecture. It does from TensorFlow's way of computing a dilated convolution, on a map"
    " filled up to a multiple of the rate: the last column."
)

# Why a computed value is not the paper's: by table, row and column
NOTES = {
    **{("3", side, f"V2 {part}"): _NEXT_ROW for side in ("56", "28", "14") for part in ("channels", "KB")},
    ("3", "7", "V1 KB"): "7 x 7 x 1024 values of 16 bits are 100 KB; the maximum is the same.",
    ("4", "MobileNetV1", "MAdds M"): "Howard et al. state 569M for this network themselves (their Table 4).",
    ("4", "MobileNetV2", "params M"): "3.47M without batch norm's weights and biases, cut to one digit.",
    ("4", "MobileNetV2 (1.4)", "params M"): (
        "Does not follow from the architecture: the authors' own release of it has 6.06M without batch norm. (3.5M"
        " times the square of 1.4 would be 6.9M, but the classifier grows with 1.4 alone.)"
    ),
    ("5", "SSDLite", "MAdds B"): (
        "Does not follow from the architecture: with it Table 6 would be 0.96B, not 0.8B. (It is twice the count, as if"
        " multiplications and additions counted one each here.)"
    ),
    ("7", "MNet V1 / 16 / ASPP", "MAdds B"): _ATROUS,
    ("7", "MNet V2 / 16 / ASPP", "MAdds B"): _ATROUS,
    ("7", "MNet V2 / 8 / ASPP MF", "MAdds B"): _ATROUS,
    ("7", "MNet V1 / 8 / ASPP MF", "MAdds B"): (
        "Does not follow from the architecture, nor from TensorFlow's way. Section 6.3 contradicts it: 4.9 times fewer"
        " than ResNet-101's 4870.6B would be 994B, and TensorFlow's way gives 991B."
    ),
}
