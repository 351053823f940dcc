"""Going on with a run: what its config may change, and putting its state back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from mnv2det.config import Config, from_dict, load_config, to_dict
from mnv2det.engine.checkpoint import load_newest, remove_leftovers
from mnv2det.errors import ConfigError, WeightsError
from mnv2det.io import RunFolder
from mnv2det.models.build import assemble
from mnv2det.models.model import Model
from mnv2det.models.weight_file import Header

# Keys that say where data is read and how often something is written: they may always change.
HARMLESS = (
    "data.root", "data.workers", "train.log_every", "train.log_to", "train.checkpoint_every", "train.keep_checkpoints",
)  # fmt: skip
# Keys that may never change: the checkpoint's weights and optimizer statistics would not fit or mean something else.
FIXED = (
    *(f"model.{key}" for key in ("backbone", "input_size", "mean", "std", "fit", "sampling", "weights")),
    *("tasks", "optim.optimizer.name", "optim.optimizer.args.momentum"),
)
# Keys of a task that are not fixed.
NOT_FIXED_OF_TASKS = ("weight", "evaluator")


@dataclass(frozen=True)
class Change:
    """A key that a resumed run has another value for."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.old!r} -> {self.new!r})"


def resume_config(run: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """The configuration that a run folder keeps, with overrides laid over it.

    Raises:
        ConfigError: There is none, or an override is wrong.
    """
    folder = RunFolder(run)
    folder.check_begun()
    return load_config(folder.config, list(overrides))


def open_run(
    run: str | os.PathLike[str], resume: bool, restarted: bool = False
) -> tuple[dict[str, Any] | None, list[str]]:
    """Reads the checkpoint of a run folder and removes what a killed process left half written.

    Args:
        run: The folder; need not exist.
        resume: Whether there must be a checkpoint.
        restarted: Whether torchrun has restarted the processes: there may be a checkpoint then.

    Returns:
        The state to start from, None at the beginning, and warnings.

    Raises:
        ConfigError: It holds a run already, or is no folder.
        WeightsError: There is no readable checkpoint, or the folder cannot be written.
    """
    folder = RunFolder(run)
    if not resume and not restarted:
        folder.check_unused()
    try:
        remove_leftovers(run)
        return load_newest(run) if resume or folder.checkpoint.exists() else (None, [])
    except OSError as error:
        raise WeightsError(f"{error.filename or run}: cannot prepare the run folder ({error.strerror})") from None


def changes(before: Any, now: Any, prefix: str = "") -> list[Change]:
    """What differs between two nested configs, by dotted key.

    Args:
        before: Plain nested data.
        now: Plain nested data.
        prefix: Dotted key of both.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            change
            for key in keys
            for change in changes(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == now else [Change(prefix, before, now)]


def check_changes(
    state: dict[str, Any], config: Config, world: int, run: str | os.PathLike[str], *, allow: bool
) -> list[Change]:
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
    folder = RunFolder(run)
    # a checkpoint of an earlier version lacks keys, which then had their defaults
    before = to_dict(from_dict(state.get("config") or {}, where=f"{folder.checkpoint}: its config"))
    changed = changes(before, to_dict(config))
    if "world" in state and state["world"] != world:
        changed.append(Change("processes", state["world"], world))
    fixed = [change for change in changed if _is_fixed(change.key)]
    if fixed:
        raise ConfigError(
            f"{folder.config}: changed since the checkpoint: {_listed(fixed)}; what was learned so far would not"
            f" fit: start another run, for instance with model.weights={folder.best}"
        )
    refused = [change for change in changed if change.key not in HARMLESS]
    if refused and not allow:
        raise ConfigError(
            f"{folder.config}: changed since the checkpoint: {_listed(refused)}; take it back, or accept it with"
            " --allow-changes"
        )
    return changed


def resumed_model(
    state: dict[str, Any], config: Config, classes: dict[str, list[str]], run: str | os.PathLike[str]
) -> Model:
    """The checkpoint's model, without its weights: the initial ones need not be there any more.

    Raises:
        WeightsError: The checkpoint is of other classes.
        ConfigError: A component is not registered any more.
    """
    checkpoint = RunFolder(run).checkpoint
    header = Header.from_json(str(state.get("header")), where=str(checkpoint))
    if header.classes != classes:
        raise WeightsError(f"{checkpoint}: its classes are not those of the data: {header.classes}")
    model = assemble(header.backbone, header.heads, classes=header.classes, preprocess=header.preprocess)
    if config.model.freeze:
        model.freeze(config.model.freeze)
    return model


def restore_optimizer(optimizer: torch.optim.Optimizer, schedule: LambdaLR, state: dict[str, Any]) -> None:
    """Puts the optimizer's statistics and the schedule's step back; rates and decay stay the config's.

    Raises:
        KeyError, ValueError: They do not fit.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    schedule.last_epoch = step = int(state["schedule"]["last_epoch"])
    for group, values, base, factor in zip(
        optimizer.param_groups, settings, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group.update(values)
        group["lr"] = base * factor(step)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _is_fixed(key: str) -> bool:
    parts = key.split(".")
    if parts[0] == "tasks" and len(parts) > 2 and parts[2] in NOT_FIXED_OF_TASKS:
        return False
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def _listed(changed: list[Change]) -> str:
    return ", ".join(map(str, changed))
