"""Files of TensorFlow 1, written here as its authors stored their networks."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_writer import arrays_of, frozen_graph, node, random_model, saved_model, write_checkpoint

from mnv2det.commands.import_weights import import_weights
from mnv2det.convert.labels import COCO_IDS, detector_names, read_label_map
from mnv2det.convert.tensorflow.convert import convert_tensorflow
from mnv2det.errors import WeightsError
from mnv2det.models.build import from_file
from mnv2det.models.model import Model

pytestmark = pytest.mark.heavy

FORMS = ("graph", "saved_model", "saved_variables", "checkpoint", "shards")


def write(form: str, folder: Path, arrays: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if form == "graph":
        (folder / "net.pb").write_bytes(frozen_graph(arrays, (96, 128)))
        return folder / "net.pb"
    if form == "saved_model":
        (folder / "saved_model.pb").write_bytes(saved_model(frozen_graph(arrays, (96, 128))))
        return folder
    if form == "saved_variables":
        (folder / "saved_model.pb").write_bytes(saved_model(frozen_graph({}, (96, 128))))
        write_checkpoint(folder / "variables/variables", arrays)
        return folder
    return write_checkpoint(folder / "model.ckpt-400", arrays, block=300, shards=3 if form == "shards" else 1)


@pytest.fixture(scope="module")
def detector() -> Model:
    return random_model("det")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", ["det", "cls", "seg"])
def test_every_form_brings_the_same_weights(tmp_path: Path, task: str, form: str):
    model = random_model(task)
    tensors, header = convert_tensorflow(write(form, tmp_path / "net", arrays_of(model, task)))
    own = model.state_dict()
    assert tensors.keys() == own.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, own[name]), name
    assert header.trainable
    if form in ("graph", "saved_model", "saved_variables"):
        assert header.preprocess.input_size == (96, 128)
    else:
        assert header.preprocess.input_size == {"det": (300, 300), "cls": (224, 224), "seg": (513, 513)}[task]


def test_what_was_imported_computes_the_same(tmp_path: Path, detector: Model):
    source = write("graph", tmp_path, arrays_of(detector, "det"))
    import_weights(source, tmp_path / "w.safetensors", progress=False)
    again, header = from_file(str(tmp_path / "w.safetensors"))
    image = torch.rand(1, 3, 96, 128) * 2 - 1
    with torch.no_grad():
        found, expected = again.eval()(image)["det"], detector(image)["det"]
    for name in ("logits", "codes"):
        assert torch.equal(found[name], expected[name])
    assert header.heads["det"]["args"]["nms_iou"] == 0.55
    assert header.classes == {"det": ["0", "1", "2"]}


V1 = {"backbone_name": "mobilenet_v1", "width": 0.25}
V1_TAPS = {"taps": ["block11/16", "last/32"]}
PLAIN = {"lite": False, "predictor_kernel": 1}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("det", {"head_args": PLAIN}),
        ("det", {"head_args": {"lite": False}}),
        ("det", {**V1, "head_args": {**V1_TAPS, **PLAIN}}),
        ("det", {**V1, "head_args": V1_TAPS}),
        ("cls", V1),
        ("seg", {"head_args": {"aspp": True, "channels": 32}}),
        ("seg", {"head_args": {"aspp": True, "aspp_separable": True, "channels": 32}}),
    ],
)
def test_relatives_are_read_as_well(tmp_path: Path, task: str, changes: dict[str, Any]):
    model = random_model(task, **changes)
    source = write("graph", tmp_path, arrays_of(model, task))
    labels = None
    if task == "det":
        labels = tmp_path / "names.txt"
        labels.write_text("one\ntwo\nthree\n")
    import_weights(source, tmp_path / "w.safetensors", labels=labels, progress=False)
    again, header = from_file(str(tmp_path / "w.safetensors"))
    own = model.state_dict()
    assert again.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    assert header.backbone["name"] == changes.get("backbone_name", "mobilenet_v2")


@pytest.mark.parametrize(("first", "stride"), [(7, 8), (14, 16), (None, 16)])
def test_a_graph_tells_its_output_stride(tmp_path: Path, first: int | None, stride: int):
    graph = frozen_graph(arrays_of(random_model("seg"), "seg"), (96, 128))
    for number in range(first or 17, 17):
        graph += node(f"MobilenetV2/expanded_conv_{number}/depthwise/depthwise/SpaceToBatchND", "SpaceToBatchND")
    (tmp_path / "net.pb").write_bytes(graph)
    _, header = convert_tensorflow(tmp_path / "net.pb")
    assert header.backbone["args"]["output_stride"] == stride


@pytest.mark.parametrize(
    ("width", "divisor", "last"), [(0.5, 8, 640), (0.75, 8, 960), (0.35, 1, None), (0.5, 1, None), (1.4, 8, None)]
)
def test_widths_are_found_as_published(tmp_path: Path, width: float, divisor: int, last: int | None):
    extra = {} if last is None else {"last_channels": last}
    model = random_model("det", width=width, divisor=divisor, extras=(32, 16, 16, 16), **extra)
    tensors, header = convert_tensorflow(write("checkpoint", tmp_path, arrays_of(model, "det")))
    args = header.backbone["args"]
    assert (args["width"], args.get("divisor", 8), args.get("last_channels")) == (width, divisor, last)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_moving_averages_are_preferred_and_the_optimizers_variables_left_out(tmp_path: Path, detector: Model):
    arrays = arrays_of(detector, "det")
    trained = {name: array + 1 for name, array in arrays.items()}
    trained |= {f"{name}/ExponentialMovingAverage": array for name, array in arrays.items()}
    trained |= {f"{name}/{slot}": array * 0 for name, array in arrays.items() for slot in ("RMSProp", "Momentum")}
    trained["global_step"] = np.array(7, np.int64)
    tensors, header = convert_tensorflow(write("checkpoint", tmp_path, trained))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in detector.state_dict().items())
    assert "model.ckpt-400.index" in header.provenance["source"]


def test_the_newest_checkpoint_of_a_folder_is_taken(tmp_path: Path, detector: Model):
    arrays = arrays_of(detector, "det")
    for step in (90, 1200, 300):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", {name: array + step for name, array in arrays.items()})
    tensors, _ = convert_tensorflow(tmp_path)
    bias = "heads.det.class_predictors.0.1.bias"
    assert torch.equal(tensors[bias], detector.state_dict()[bias] + 1200)


def test_anchors_of_the_graph_are_taken_and_others_are_the_apis(tmp_path: Path, detector: Model):
    arrays, shapes = arrays_of(detector, "det"), {}
    for level, count in enumerate((3, 6, 6, 6, 6, 6)):
        suffix = f"_{level}" if level else ""
        shapes[f"MultipleGridAnchorGenerator/Sqrt{suffix}/x"] = np.linspace(1, 2, count, dtype=np.float32)
        shapes[f"MultipleGridAnchorGenerator/truediv{suffix}/x"] = np.full(count, 0.1 * (level + 1), np.float32)
    _, header = convert_tensorflow(write("graph", tmp_path / "stated", {**arrays, **shapes}))
    assert header.heads["det"]["args"]["anchors"][1][:2] == [[0.2, 1.0], [0.2, 1.2]]
    assert "anchors" not in header.provenance
    _, header = convert_tensorflow(write("graph", tmp_path / "silent", arrays))
    assert header.provenance["anchors"].startswith("the Object Detection API's defaults")
    assert header.heads["det"]["args"]["anchors"][0] == [[0.1, 1.0], [0.2, 2.0], [0.2, 0.5]]


PIPELINE = """
# as the Object Detection API writes it
model {
  ssd {
    num_classes: 3
    image_resizer { fixed_shape_resizer { height: 320 width: 480 } }
    feature_extractor { type: "ssd_mobilenet_v2" conv_hyperparams { regularizer { l2_regularizer {} } } }
    anchor_generator {
      ssd_anchor_generator {
        num_layers: 6
        min_scale: 0.15
        max_scale: 0.9
        aspect_ratios: 1.0
        aspect_ratios: 2.0
        aspect_ratios: [0.5, 3.0, 0.3333]
      }
    }
    post_processing {
      batch_non_max_suppression { score_threshold: 0.01, iou_threshold: 0.45; max_total_detections: 50 }
      score_converter: SOFTMAX
    }
  }
}
train_input_reader: { label_map_path: "PATH/{}label\\"_map.pbtxt" }
"""


def test_the_configuration_beside_a_checkpoint_is_read(tmp_path: Path, detector: Model):
    source = write("checkpoint", tmp_path, arrays_of(detector, "det"))
    (tmp_path / "pipeline.config").write_text(PIPELINE)
    _, header = convert_tensorflow(source)
    args = header.heads["det"]["args"]
    assert header.preprocess.input_size == (320, 480)
    assert (args["score"], args["nms_iou"], args["score_threshold"], args["max_detections"]) == (
        "softmax",
        0.45,
        0.01,
        50,
    )
    assert args["anchors"][0] == [[0.1, 1.0], [0.15, 2.0], [0.15, 0.5]]
    assert args["anchors"][5][:5] == [[pytest.approx(0.9), ratio] for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
    assert args["anchors"][5][5] == [pytest.approx(0.9**0.5), 1.0]
    assert "anchors" not in header.provenance


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers: 6", "num_layers: 5", "anchors of the levels, but its pipeline.config says"),
        ("min_scale: 0.15", "min_scale: x", "pipeline.config: min_scale x: expected a number from 0.001 to 100"),
        ("min_scale: 0.15", "scales: 0.1", "pipeline.config: anchors with scales"),
        ("height: 320", "height: 3", "pipeline.config: height 3: expected a number from 32 to 8192"),
        ("num_classes: 3", "num_classes:", "pipeline.config: '{' where the name of a field is expected"),
        ("model {", "model {{", "pipeline.config: '{' where the name of a field is expected"),
        ("model {", "}", "pipeline.config: a brace too many"),
        ("train_input", "a {", "pipeline.config: it ends within a message"),
        ("num_classes: 3", "num_classes: \x00", "pipeline.config: line 5 cannot be read"),
        ("num_classes: 3", "a {" * 60 + "}" * 60, "more than 50 messages within each other"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_named(tmp_path: Path, detector: Model, old: str, new: str, message: str):
    source = write("checkpoint", tmp_path, arrays_of(detector, "det"))
    (tmp_path / "pipeline.config").write_text(PIPELINE.replace(old, new))
    with pytest.raises(WeightsError, match=message) as info:
        convert_tensorflow(source)
    assert "\n" not in str(info.value)


def test_a_configuration_of_another_kind_of_detector_says_nothing(tmp_path: Path, detector: Model):
    source = write("checkpoint", tmp_path, arrays_of(detector, "det"))
    (tmp_path / "pipeline.config").write_text("model { faster_rcnn { num_classes: 3 } }")
    _, header = convert_tensorflow(source)
    assert header.provenance["anchors"].startswith("the Object Detection API's defaults")


@pytest.mark.parametrize("lite", [True, False])
def test_classes_without_a_name_are_left_out(tmp_path: Path, lite: bool):
    model = random_model("det", classes=4, head_args={"lite": lite})
    (tmp_path / "map.pbtxt").write_text(
        "item {\n  id: 1 # first\n  name: '/m/01'\n  display_name: \"cat\"\n}\nitem { name: 'dog' id: 4 }\n"
    )
    tensors, header = convert_tensorflow(
        write("checkpoint", tmp_path / "net", arrays_of(model, "det")), labels=tmp_path / "map.pbtxt"
    )
    assert header.classes == {"det": ["cat", "dog"]}
    bias = f"heads.det.class_predictors.1{'.1' if lite else ''}.bias"
    assert torch.equal(tensors[bias], model.state_dict()[bias].view(6, 5)[:, [0, 1, 4]].flatten())


def test_named_class_lists():
    assert detector_names("coco90", 90) == COCO_IDS
    assert sum(map(bool, COCO_IDS)) == 80
    assert detector_names("voc", 20)[14] == "person"
    with pytest.raises(WeightsError, match="coco90: names of 90 classes, but the network has 20"):
        detector_names("coco90", 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no items"),
        ("item { id: 1 }", "item 1 has no name"),
        ("item { name: 'a' }", "item 1 has no id"),
        ("item { name: 'a' id: -1 }", "item 1 has no id"),
        ("item { name: 'a' id: 1 } item { name: 'b' id: 1 }", "item 2 has the id or name of another: 1 'b'"),
        ("item { name: 'a' id: 1 } item { name: 'a' id: 2 }", "item 2 has the id or name of another: 2 'a'"),
    ],
)
def test_broken_label_maps_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "m.pbtxt").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_label_map(tmp_path / "m.pbtxt")


def refusal(source: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        convert_tensorflow(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_network_is_named_by_its_first_layer_that_differs(tmp_path: Path, detector: Model):
    arrays = arrays_of(detector, "det")
    scope = "FeatureExtractor/MobilenetV2"
    lacking = {name: array for name, array in arrays.items() if "expanded_conv_5/depthwise/depth" not in name}
    assert f"no '{scope}/expanded_conv_5/depthwise/depthwise_weights'" in refusal(
        write("graph", tmp_path / "a", lacking)
    )
    wrong = {**arrays, f"{scope}/expanded_conv_3/expand/weights": np.zeros((1, 1, 8, 9), np.float32)}
    assert "expanded_conv_3/expand/weights' is [1, 1, 8, 9], expected [1, 1, " in refusal(
        write("graph", tmp_path / "b", wrong)
    )
    more = {**arrays, "BoxPredictor_6/ClassPredictor/weights": np.zeros((1, 1, 8, 9), np.float32)}
    assert "also has 'BoxPredictor_6/ClassPredictor/weights'" in refusal(write("graph", tmp_path / "c", more))
    nan = {**arrays, f"{scope}/Conv/BatchNorm/beta": np.full(16, np.nan, np.float32)}
    assert "Conv/BatchNorm/beta' has values that are not finite" in refusal(write("graph", tmp_path / "e", nan))
    other = {"resnet_v1_50/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)}
    assert "neither an SSD, a classifier nor a DeepLab" in refusal(write("graph", tmp_path / "f", other))


def test_what_is_missing_is_said(tmp_path: Path, detector: Model):
    assert "neither frozen_inference_graph.pb, saved_model.pb, model.json nor a checkpoint in it" in refusal(tmp_path)
    prefix = write_checkpoint(tmp_path / "m", arrays_of(detector, "det"))
    Path(f"{prefix}.data-00000-of-00001").unlink()
    assert "m.data-00000-of-00001: no such checkpoint's values" in refusal(prefix)
    (tmp_path / "bare.pb").write_bytes(node("image", "Placeholder"))
    assert "neither an SSD, a classifier nor a DeepLab" in refusal(tmp_path / "bare.pb")
    (tmp_path / "empty.pb").write_bytes(b"")
    assert "damaged, or no graph of TensorFlow's (no nodes)" in refusal(tmp_path / "empty.pb")


def test_names_that_cannot_be_printed_are_damage(tmp_path: Path, detector: Model):
    arrays = {"a\nb/weights": np.zeros((1, 1, 2, 2), np.float32), **arrays_of(detector, "det")}
    assert "a node whose name cannot be printed" in refusal(write("graph", tmp_path / "g", arrays))
    assert "a variable whose name cannot be printed" in refusal(write("checkpoint", tmp_path / "c", arrays))


@pytest.fixture(scope="module")
def whole(detector: Model) -> dict[str, bytes]:
    """Files of a small network, to be damaged: that all of it is there does not matter for the readers."""
    arrays = dict(list(arrays_of(detector, "det").items())[:20])
    return {"graph": frozen_graph(arrays, (96, 96)), "model": saved_model(frozen_graph(arrays, (96, 96)))}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_graphs_are_errors_of_one_line(tmp_path: Path, whole: dict[str, bytes], data: st.DataObject):
    damaged = bytearray(whole[data.draw(st.sampled_from(sorted(whole)))])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    (tmp_path / "n.pb").write_bytes(damaged)
    refusal(tmp_path / "n.pb")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_checkpoints_are_errors_of_one_line(tmp_path: Path, detector: Model, data: st.DataObject):
    arrays = dict(list(arrays_of(detector, "det").items())[:20])
    prefix = write_checkpoint(tmp_path / "m", arrays, block=200)
    index = Path(f"{prefix}.index")
    damaged = bytearray(index.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    index.write_bytes(damaged)
    refusal(prefix)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["graph", "model", "checkpoint"])
def test_a_hundred_thousand_damaged_files(tmp_path: Path, detector: Model, whole: dict[str, bytes], form: str):
    """Neither another exception nor much memory, whatever is changed, cut off or written twice."""
    random_ = random.Random(0)
    prefix = tmp_path / "m"
    if form == "checkpoint":
        write_checkpoint(prefix, dict(list(arrays_of(detector, "det").items())[:20]), block=200)
        content, path = Path(f"{prefix}.index").read_bytes(), Path(f"{prefix}.index")
    else:
        content, path = whole[form], tmp_path / "n.pb"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100_000):
        damaged = bytearray(content)
        for _ in range(random_.randint(1, 6)):
            damaged[random_.randrange(len(damaged))] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
        if random_.random() < 0.3:
            start, end = sorted(random_.randrange(len(damaged)) for _ in range(2))
            damaged[start:end] = [b"", damaged[start:end] * 2][random_.random() < 0.5]
        path.write_bytes(damaged)
        with pytest.raises(WeightsError) as caught:
            convert_tensorflow(path)
        assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_500_000  # KiB
