import dataclasses

import pytest
import torch

import mnv2det.models  # noqa: F401 - registers
from mnv2det.config import Component, ModelConfig, TaskConfig
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.models.build import assemble, from_config, from_file
from mnv2det.models.model import Model
from mnv2det.models.weight_file import read_weights, save_weights
from mnv2det.structures import Preprocess

NAMES = ["cat", "cow", "dog"]


def small(classes: list[str] = NAMES, **backbone: object) -> Model:
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, **backbone}},
        {"det": {"name": "ssdlite", "args": {"extras": [16, 16]}}},
        classes={"det": classes},
        preprocess=Preprocess((64, 96), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    )


def start_from(path: object, classes: list[str] = NAMES, **backbone: object) -> tuple[Model, list[str]]:
    config = ModelConfig(backbone=Component("mobilenet_v2", dict(backbone)), input_size=[64, 96], weights=str(path))
    tasks = {"det": TaskConfig(head=Component("ssdlite", {"extras": [16, 16]}))}
    return from_config(config, tasks, {"det": classes})


@pytest.fixture
def saved(tmp_path):
    model = small(padding="same")
    save_weights(tmp_path / "w.safetensors", model.state_dict(), model.header(metrics={"det/AP": 0.5}))
    return tmp_path / "w.safetensors", model


def test_a_weight_file_rebuilds_the_same_model(saved):
    path, model = saved
    again, header = from_file(str(path))
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        raw = [m.eval()(m.normalize(images))["det"]["logits"] for m in (model, again)]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=0)
    assert header.classes == {"det": NAMES}
    assert header.preprocess == model.preprocess
    assert header.metrics == {"det/AP": 0.5}


def test_the_header_spells_out_defaults(saved):
    header = read_weights(saved[0])[1]
    assert header.backbone["args"]["norm_eps"] == 1e-3
    assert header.heads["det"]["args"]["nms_iou"] == 0.6


def test_training_takes_padding_width_mean_and_std_from_the_weights(saved):
    model, notes = start_from(saved[0])
    assert model.backbone.padding == "same"
    assert model.preprocess.mean == (0.1, 0.2, 0.3)
    assert any("loaded heads.det" in note for note in notes)


def test_a_run_folder_as_weights_means_its_best_ones(saved):
    path, _ = saved
    with pytest.raises(WeightsError, match=r"no best\.safetensors in this folder; has the run been evaluated yet\?$"):
        start_from(path.parent)
    path.rename(best := path.parent / "best.safetensors")
    model, notes = start_from(path.parent)
    assert model.backbone.padding == "same"
    assert f"{best}: loaded heads.det" in " ".join(notes)


def test_weights_may_lie_in_the_home_folder(saved, monkeypatch):
    path, _ = saved
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("USERPROFILE", str(path.parent))
    assert f"{path}: loaded heads.det" in " ".join(start_from(f"~/{path.name}")[1])


def test_a_contradiction_of_the_weights_is_named(saved):
    with pytest.raises(
        ConfigError, match=r"model\.backbone\.args\.padding: 'symmetric', but .* was trained with 'same'"
    ):
        start_from(saved[0], padding="symmetric")


@pytest.mark.parametrize("classes", [["cow", "cat", "dog"], ["bus", "car", "van"], ["cat", "cow"]])
def test_other_classes_restart_their_rows_alone_and_it_is_said(saved, classes: list[str]):
    model, notes = start_from(saved[0], classes)
    ours, theirs = model.state_dict(), read_weights(saved[0])[0]
    same = [name for name in classes if name in NAMES]
    said = f"{', '.join(same)} keep theirs" if same else "none keeps its own"
    assert any(f"its class rows: {len(classes) - len(same)} of {len(classes)} start anew, {said}" in n for n in notes)
    rows = {f"heads.det.{name}" for name in model.heads["det"].class_rows()}
    for name, tensor in ours.items():
        if name not in rows:
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
            continue
        part = model.heads["det"].class_rows()[name.removeprefix("heads.det.")]
        mine = tensor.view(part.groups, 1 + len(classes), -1)
        given = theirs[name].view(part.groups, 1 + len(NAMES), -1)
        torch.testing.assert_close(mine[:, 0], given[:, 0], rtol=0, atol=0)
        for place, label in enumerate(classes, 1):
            if label in NAMES:
                torch.testing.assert_close(mine[:, place], given[:, 1 + NAMES.index(label)], rtol=0, atol=0)
            elif name.endswith("weight"):
                assert not any(torch.equal(mine[:, place], given[:, other]) for other in range(len(NAMES) + 1))


def test_a_head_takes_its_structure_from_the_weights_unless_told_otherwise(saved):
    config = ModelConfig(input_size=[64, 96], weights=str(saved[0]))
    model, notes = from_config(config, {"boxes": TaskConfig(head=Component("ssdlite"))}, {"boxes": NAMES})
    assert model.spec["heads"]["boxes"]["args"]["extras"] == [16, 16]
    assert any("loaded heads.boxes" in note for note in notes), "another task name, the same kind of head"
    told = TaskConfig(head=Component("ssdlite", {"score": "softmax"}))
    _, notes = from_config(config, {"det": told}, {"det": NAMES})
    assert any("det starts from random weights (its score is softmax, the file's sigmoid)" in note for note in notes)
    assert any("left out heads.det" in note for note in notes)


def test_a_backbone_that_does_not_fit_names_the_tensor(saved, tmp_path):
    tensors, header = read_weights(saved[0])
    del tensors["backbone.blocks.3.expand.conv.weight"]
    save_weights(tmp_path / "cut.safetensors", tensors, header)
    with pytest.raises(WeightsError, match=r"1 of \d+ backbone tensors do not fit: 'backbone\.blocks\.3\.expand\.conv"):
        start_from(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign", "missing"])
def test_damaged_files_are_one_line(saved, tmp_path, damage: str):
    from safetensors.torch import save_file

    path, data = tmp_path / "bad.safetensors", saved[0].read_bytes()
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    elif damage != "missing":
        path.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"x" * 999, "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"bad\.safetensors") as caught:
        from_file(str(path))
    assert "\n" not in str(caught.value)


def test_weights_for_inference_only_are_refused_for_training(saved, tmp_path):
    tensors, header = read_weights(saved[0])
    header.trainable = False
    save_weights(tmp_path / "folded.safetensors", tensors, header)
    with pytest.raises(WeightsError, match=r"for inference only, its batch norm is folded; .*--images FOLDER"):
        start_from(tmp_path / "folded.safetensors")
    assert from_file(str(tmp_path / "folded.safetensors"))


def test_nothing_is_half_written(tmp_path, monkeypatch):
    import os

    model = small()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), model.header())
    before = (tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_weights(tmp_path / "w.safetensors", model.state_dict(), model.header())
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def segmenter(**args: object) -> Model:
    return assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "output_stride": 16}},
        {"seg": {"name": "mobile_deeplab", "args": {"channels": 16, **args}}},
        classes={"seg": NAMES},
        preprocess=Preprocess((64, 96)),
    )


def test_a_joint_model_starts_from_a_segmenter_which_lacks_the_last_layer(tmp_path):
    """The detail branch is new as well: it adds nothing at first, so the masks stay what they were."""
    old = segmenter()
    torch.nn.init.normal_(old.heads["seg"].classify.bias)
    save_weights(tmp_path / "seg.safetensors", old.state_dict(), old.header())
    config = ModelConfig(input_size=[64, 96], weights=str(tmp_path / "seg.safetensors"))
    tasks = {
        "det": TaskConfig(head=Component("ssdlite", {"extras": [16, 16]})),
        "seg": TaskConfig(head=Component("mobile_deeplab", {"detail_tap": "block3"})),
    }
    new, notes = from_config(config, tasks, {"det": NAMES, "seg": NAMES})
    said = "; ".join(notes)
    assert "backbone.last starts from random weights (the file ends before it)" in said
    assert "loaded heads.seg" in said
    assert "detail starts from fresh weights" in said
    assert not new.heads["seg"].detail[1].weight.any()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted, found = (model.eval()(images)["seg"] for model in (old, new))
    assert wanted["logits"].std() > 0.1
    size = (64, 96)
    torch.testing.assert_close(
        new.heads["seg"].scores(found, size), old.heads["seg"].scores(wanted, size), rtol=0, atol=0.1
    )
    same = torch.nn.functional.interpolate(wanted["logits"], (16, 24), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found["logits"], same, rtol=1e-4, atol=1e-4)


def test_a_classifier_starts_a_detector(tmp_path):
    old = assemble(
        {"name": "mobilenet_v2", "args": {"width": 0.35, "padding": "same"}},
        {"cls": {"name": "classifier", "args": {}}},
        classes={"cls": NAMES},
        preprocess=Preprocess((64, 96), fit="crop"),
    )
    for value in old.backbone.state_dict().values():
        if value.is_floating_point():
            value.add_(0.01)
    save_weights(tmp_path / "cls.safetensors", old.state_dict(), old.header())
    new, notes = start_from(tmp_path / "cls.safetensors")
    assert any("heads.det starts from random weights" in note for note in notes)
    # the middle of a picture is for its class alone
    assert new.preprocess.fit == "stretch"
    theirs = old.backbone.state_dict()
    for name, value in new.backbone.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    config = ModelConfig(input_size=[64, 96], weights=str(tmp_path / "cls.safetensors"))
    again, notes = from_config(config, {"cls": TaskConfig(head=Component("classifier"))}, {"cls": NAMES})
    assert again.preprocess.fit == "crop"
    assert any("by 'crop'" in note for note in notes)
    with pytest.raises(ConfigError, match=r"model\.fit: crop shows a part of the picture"):
        assemble(
            {"name": "mobilenet_v2", "args": {}},
            {"det": {"name": "ssdlite", "args": {}}},
            classes={"det": NAMES},
            preprocess=Preprocess((64, 96), fit="crop"),
        )


def test_a_detector_keeps_the_sampling_of_its_weights_and_a_segmenter_does_not(saved, tmp_path):
    path, _ = saved
    tensors, header = read_weights(path)
    header.preprocess = dataclasses.replace(header.preprocess, sampling="corners")
    save_weights(tmp_path / "c.safetensors", tensors, header)
    started, _ = start_from(tmp_path / "c.safetensors")
    assert started.preprocess.sampling == "corners"
    config = ModelConfig(input_size=[64, 96], weights=str(tmp_path / "c.safetensors"))
    masks = {"seg": TaskConfig(head=Component("mobile_deeplab"))}
    segmenter, _ = from_config(config, masks, {"seg": NAMES})
    assert segmenter.preprocess.sampling == "centers"
    config.sampling = "corners"
    with pytest.raises(ConfigError, match=r"model\.sampling: masks need centers"):
        from_config(config, masks, {"seg": NAMES})
