"""``train``: what comes before the training loop, for the command line and for Python. Imports no torch by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mnv2det.config import Config, check_warmup, data_root
from mnv2det.errors import ConfigError
from mnv2det.io import CONFIG, RunFolder


def train_run(
    config: Config,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    allow_changes: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Checks what can be checked at once, fetches the weights that the config names, and trains.

    Args:
        config: The experiment.
        folder: The run folder.
        resume: See `mnv2det.engine.trainer.train`.
        allow_changes: As ``resume``.
        device: As ``resume``.
        progress: Whether to show how far a download is.

    Returns:
        As `mnv2det.engine.trainer.train`.

    Raises:
        ConfigError, DataError, WeightsError: Config, data or weights are wrong; nothing was trained.
        TrainingError, Interrupted: As `mnv2det.engine.trainer.train`.
    """
    if config.train.steps and not resume:
        check_warmup(config, config.train.steps)  # the trainer checks runs whose length is stated in epochs
    _check_paths(config, RunFolder(folder), resume)
    # torch's import takes seconds: mistakes in the config are reported before it
    from mnv2det.commands.weights import provide
    from mnv2det.engine.trainer import train

    provide(config.model.weights, progress=progress)
    return train(config, folder, resume=resume, allow_changes=allow_changes, device=device)


def run_name(config: str | os.PathLike[str]) -> str:
    """The name of the config, or of the imported folder that it lies in."""
    path = Path(os.path.abspath(config))
    if path.name == CONFIG:
        return path.parent.name
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def _check_paths(config: Config, run: RunFolder, resume: bool) -> None:
    """Checks what can be checked without torch.

    Raises:
        ConfigError: The folder of the data is missing, or the run folder is in use.
    """
    root = data_root(config)
    if (config.data.root or os.environ.get("MNV2DET_DATA")) and not root.is_dir():
        key = "data.root" if config.data.root else "MNV2DET_DATA"
        raise ConfigError(f"{key}: {root}: no such folder")
    # torchrun may have restarted these processes, whose run then exists: the trainer finds out
    if not resume and "WORLD_SIZE" not in os.environ:
        run.check_unused()
