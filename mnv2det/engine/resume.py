"""Going on with a run: what may change between its parts, and putting its state back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from mnv2det.config import Config, from_dict, load_config, to_dict
from mnv2det.engine.checkpoint import LAST, load_newest, sweep
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header

# where and how often, not what: these may change without being asked
HARMLESS = (
    "data.root",
    "data.workers",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)
# a checkpoint's weights and statistics of the optimizer would not fit, or not mean the same
FIXED = (
    "model.backbone",
    "model.input_size",
    "model.mean",
    "model.std",
    "model.fit",
    "model.weights",
    "tasks",
    "optim.optimizer.name",
    "optim.optimizer.args.momentum",
)
# but of the tasks these may
FREE = ("weight", "evaluator")


@dataclass(frozen=True)
class Change:
    """A key that a resumed run has another value for."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.old!r} -> {self.new!r})"


def resume_config(run: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration that a run folder keeps, with overrides laid over it.

    Raises:
        ConfigError: There is none, or an override is wrong.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: not a run folder (no config.yaml in it)")
    return load_config(run / "config.yaml", list(overrides))


def open_run(run: Path, resume: bool, restarted: bool = False) -> tuple[dict[str, Any] | None, list[str]]:
    """Looks what a run folder holds and clears away what a killed process left half written.

    Args:
        run: The folder; need not exist.
        resume: Whether there must be a checkpoint.
        restarted: Whether torchrun has restarted the processes: there may be a checkpoint then.

    Returns:
        The state to start from, None at the beginning, and warnings.

    Raises:
        ConfigError: It holds a run already.
        WeightsError: There is no readable checkpoint, or the folder cannot be written.
    """
    exists = (run / LAST).exists()
    if exists and not resume and not restarted:
        raise ConfigError(f"{run}: holds a run already; choose another --out, or go on with --resume {run}")
    try:
        sweep(run)
        return load_newest(run) if resume or exists else (None, [])
    except OSError as error:
        raise WeightsError(f"{error.filename or run}: cannot prepare the run folder ({error.strerror})") from None


def changes(before: Any, now: Any, place: str = "") -> list[Change]:
    """What differs between two nested configs, by dotted key."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [found for key in keys for found in changes(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))]
    return [] if before == now else [Change(place, before, now)]


def check_changes(state: dict[str, Any], config: Config, world: int, run: Path, *, allow: bool) -> list[Change]:
    """Compares a config with the one a checkpoint was made with.

    Args:
        state: Of the checkpoint.
        config: To go on with: overrides and a hand-edited config.yaml both show here.
        world: Processes now.
        run: The run folder, for messages.
        allow: Whether keys may change that change the result.

    Returns:
        What changed, in the order of the schema.

    Raises:
        ConfigError: Keys changed that may not, each with its old and new value.
    """
    # a checkpoint of an earlier version lacks keys, which then had their defaults
    before = to_dict(from_dict(state.get("config") or {}, where=f"{run / LAST}: its config"))
    found = changes(before, to_dict(config))
    if "world" in state and state["world"] != world:
        found.append(Change("processes", state["world"], world))
    fixed = [change for change in found if _fixed(change.key)]
    if fixed:
        raise ConfigError(
            f"{run / 'config.yaml'}: changed since the checkpoint: {_listed(fixed)}; what was learned so far would not"
            f" fit: start another run, for instance with model.weights={run / 'best.safetensors'}"
        )
    refused = [change for change in found if change.key not in HARMLESS]
    if refused and not allow:
        raise ConfigError(
            f"{run / 'config.yaml'}: changed since the checkpoint: {_listed(refused)}; take it back, or accept it with"
            " --allow-changes"
        )
    return found


def resumed_model(state: dict[str, Any], config: Config, classes: dict[str, list[str]], run: Path) -> Model:
    """The checkpoint's model, without its weights: the initial ones need not be there any more.

    Raises:
        WeightsError: The checkpoint is of other classes.
        ConfigError: A component is not registered any more.
    """
    header = Header.from_json(str(state.get("header")), where=str(run / LAST))
    if header.classes != classes:
        raise WeightsError(f"{run / LAST}: its classes are not those of the data: {header.classes}")
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    if config.model.freeze:
        model.freeze(config.model.freeze)
    return model


def restore_rates(optimizer: torch.optim.Optimizer, schedule: LambdaLR, state: dict[str, Any]) -> None:
    """Puts the optimizer's statistics and the schedule's place back; rates and decay stay the config's.

    Raises:
        KeyError, ValueError: They do not fit.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    schedule.last_epoch = step = int(state["schedule"]["last_epoch"])
    for group, values, base, factor in zip(
        optimizer.param_groups, own, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group.update(values)
        group["lr"] = base * factor(step)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _fixed(key: str) -> bool:
    parts = key.split(".")
    if parts[0] == "tasks" and len(parts) > 2 and parts[2] in FREE:
        return False
    return any(key == each or key.startswith(f"{each}.") for each in FIXED)


def _listed(found: list[Change]) -> str:
    return ", ".join(str(change) for change in found)
