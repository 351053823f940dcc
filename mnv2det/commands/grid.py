"""A picture of what a run has learned: predictions beside ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnv2det.config import BadData, load_config
from mnv2det.data.images import EXTENSIONS
from mnv2det.engine.build import build_dataset, check, classes_by_key
from mnv2det.engine.dist import processes
from mnv2det.errors import ConfigError, DataError
from mnv2det.io import write_atomically
from mnv2det.models.build import from_file, weights_of
from mnv2det.report.draw import draw_boxes, draw_detections, draw_mask, encode, grid, title
from mnv2det.structures import Detections, Frame, Segmentation

SHOWN_HEIGHT = 256


def prediction_grid(
    source: str,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    count: int = 12,
    threshold: float = 0.4,
    device: str | None = None,
) -> Path:
    """Draws the first images of a run's validation set, predictions left, ground truth right.

    Args:
        source: A run folder.
        overrides: ``key=value`` on its config.
        output: The picture; None puts ``predictions.png`` into the run folder.
        count: Images shown.
        threshold: Least score drawn.
        device: As in `processes`.

    Returns:
        Where the picture is.

    Raises:
        ConfigError: It is no run folder, or has no detection task.
    """
    import torch

    from mnv2det.data.fit import fit, resize

    run = Path(source)
    if not run.is_dir():
        raise ConfigError(f"{source}: no such run folder")
    path = Path(output) if output else run / "predictions.png"
    if path.suffix.lower() not in EXTENSIONS:
        raise ConfigError(f"{path}: expected the name of a picture, ending in {', '.join(sorted(EXTENSIONS))}")
    config = load_config(run / "config.yaml", overrides)
    check(config)
    with processes(device) as group:
        model = from_file(str(weights_of(run)))[0].to(group.device)
        if not {"labels", "mask"} & {head.target_key for head in model.heads.values()}:
            raise ConfigError(f"{source}: no task of this run finds boxes or masks")
        dataset = build_dataset(config, "val", classes_by_key(model))
        cells = []
        for index in range(min(count, len(dataset))):
            try:
                sample = dataset.read(index)
            except DataError:
                if config.data.bad_data is BadData.stop:
                    raise
                continue
            image, frame = fit(sample.image, model.preprocess)
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            # shown at one height, be they thumbnails or photographs
            height, width = sample.image.shape[:2]
            shown, truth = resize(sample, (SHOWN_HEIGHT, max(1, round(width * SHOWN_HEIGHT / height))))
            found = model.predict(pixels.to(group.device), [Frame((shown.shape[0], shown.shape[1]), frame.used)])
            drawn, wanted = shown, shown
            # masks lie below boxes
            for task, results in sorted(found.items(), key=lambda item: isinstance(item[1][0], Detections)):
                result, names = results[0], model.classes[task]
                if isinstance(result, Detections):
                    drawn = draw_detections(drawn, result, names, threshold=threshold)
                    if "boxes" in truth:
                        wanted = draw_boxes(wanted, truth["boxes"], truth["labels"], names)
                elif isinstance(result, Segmentation):
                    drawn = draw_mask(drawn, result.mask.cpu().numpy(), names)
                    if "mask" in truth:
                        wanted = draw_mask(wanted, truth["mask"], names)
            cells += [title(drawn, "predicted"), title(wanted, "ground truth")]
    data = encode(grid(cells, columns=6), path.suffix)
    write_atomically(path, lambda file: file.write(data))
    return path
