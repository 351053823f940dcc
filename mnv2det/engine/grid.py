"""A picture of what a run has learned: predictions beside ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnv2det.config import BadData, load_config
from mnv2det.data.images import EXTENSIONS
from mnv2det.engine.build import build_dataset, check
from mnv2det.engine.dist import processes
from mnv2det.errors import ConfigError, DataError
from mnv2det.models.model import from_file, weights_of
from mnv2det.models.weights.files import write_atomically
from mnv2det.report.draw import draw_boxes, draw_detections, encode, grid, title
from mnv2det.structures import Detections

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

    from mnv2det.data.transforms import resize

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
        dataset = build_dataset(config, "val", next(iter(model.classes.values())))
        cells = []
        for index in range(min(count, len(dataset))):
            try:
                sample = dataset.read(index)
            except DataError:
                if config.data.bad_data is BadData.stop:
                    raise
                continue
            pixels = torch.from_numpy(resize(sample, model.preprocess.input_size)[0]).permute(2, 0, 1)[None]
            # shown at one height, be they thumbnails or photographs
            height, width = sample.image.shape[:2]
            shown, truth = resize(sample, (SHOWN_HEIGHT, max(1, round(width * SHOWN_HEIGHT / height))))
            found = model.predict(pixels.to(group.device), [(shown.shape[0], shown.shape[1])])
            for task, results in found.items():
                if isinstance(results[0], Detections):
                    names = model.classes[task]
                    drawn = draw_detections(shown, results[0], names, threshold=threshold)
                    wanted = draw_boxes(shown, truth["boxes"], truth["labels"], names)
                    cells += [title(drawn, "predicted"), title(wanted, "ground truth")]
    if not cells:
        raise ConfigError(f"{source}: no task of this run finds boxes")
    data = encode(grid(cells, columns=6), path.suffix)
    write_atomically(path, lambda file: file.write(data))
    return path
