"""Where the numbers of a run go besides metrics.jsonl: TensorBoard, MLflow, Weights & Biases.

A sink is made by a function of the run folder, the config and the step to go on from. Each library is imported when a
config names it (``train.log_to``), and keeps its files in the run folder unless its own environment variables say
otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnv2det.io import import_optional

MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # and the extra of the same name
LONGEST_VALUE = 500  # characters of a parameter that MLflow takes


class Sink(NamedTuple):
    """An open sink.

    Attributes:
        write: Takes a step, and numbers by name.
        close: Is called once, at the end.
    """

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def check_sinks(names: Sequence[str]) -> None:
    """Checks that the libraries are there.

    Raises:
        ConfigError: One is not installed; says which command installs it.
    """
    for name in names:
        import_optional(MODULES[name], name)


def open_sinks(names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int) -> list[Sink]:
    """Opens sinks.

    Args:
        names: Keys of `SINKS`.
        folder: The run folder.
        config: The experiment as plain data.
        step: The step that the run goes on from; 0 for a new one.
    """
    return [SINKS[name](folder, config, step) for name in names]


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl; their names begin with ``train/`` or ``val/``."""
    place = {"train": "train", "eval": "val"}.get(record.get("kind", ""))
    if place is None:
        return {}
    return {
        f"{place}/{name}": float(value)
        for name, value in record.items()
        if name not in ("kind", "step") and isinstance(value, int | float)
    }


def _tensorboard(folder: Path, config: Mapping[str, Any], step: int) -> Sink:
    import_optional("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    # what a killed run wrote behind this step is hidden
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, number)
        writer.flush()

    return Sink(write, writer.close)


def _mlflow(folder: Path, config: Mapping[str, Any], step: int) -> Sink:
    mlflow = import_optional("mlflow", "mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    known = folder / "mlflow_run.txt"
    if step and known.is_file():
        mlflow.start_run(run_id=known.read_text().strip())
    else:
        run = mlflow.start_run(run_name=folder.name)
        known.write_text(run.info.run_id)
        mlflow.log_params({name: str(value)[:LONGEST_VALUE] for name, value in _flat(config).items()})

    def write(number: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(values), step=number)

    return Sink(write, mlflow.end_run)


def _wandb(folder: Path, config: Mapping[str, Any], step: int) -> Sink:
    wandb = import_optional("wandb", "wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "mnv2det"),
        name=folder.name,
        dir=str(folder),
        config=dict(config),
        # a run that goes on is the same one
        id=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12],
        resume="allow" if step else None,
    )

    def write(number: int, values: Mapping[str, float]) -> None:
        run.log(dict(values), step=number)

    return Sink(write, run.finish)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


SINKS: dict[str, Callable[[Path, Mapping[str, Any], int], Sink]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
