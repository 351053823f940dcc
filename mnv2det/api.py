"""What a program in Python calls: train, evaluate, export, check data.

Each function does what a verb of the command line does, with the same checks and errors. Importing this imports no
torch: the functions do when they are called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnv2det.commands.train import run_name, train_run
from mnv2det.config import Config, ConfigSource, load_config
from mnv2det.errors import ConfigError
from mnv2det.io import RunFolder

if TYPE_CHECKING:
    from mnv2det.check.run import Report
    from mnv2det.runtime.predictor import Predictor

PathLike = str | os.PathLike[str]


class Run:
    """A run folder: what a training leaves behind. It may be given wherever a run folder is expected.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.

    Raises:
        ConfigError: It is not a run folder.

    Example:
        >>> run = Run("runs/photos")                  # doctest: +SKIP
        >>> run.metrics["det/AP"]                     # doctest: +SKIP
        >>> run.predictor()("photo.jpg").names        # doctest: +SKIP
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(folder)
        self._files.check_begun()

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __str__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        return f"Run({os.fspath(self.folder)!r})"

    @property
    def config(self) -> Config:
        """The configuration, with its bases and overrides merged."""
        return load_config(self._files.config)

    @property
    def best(self) -> Path:
        """The weight file of the best evaluation; it is there once the run has been evaluated."""
        return self._files.best

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured with the best weights, by ``task/metric``; -1 is undefined.

        Raises:
            WeightsError: The run has not been evaluated yet, or its weights are damaged.
        """
        from mnv2det.runtime.predictor import header_of

        return header_of(self.folder).metrics

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` in their order: losses (``kind`` is ``train``) and metrics (``eval``)."""
        if not self._files.metrics.is_file():
            return []
        return [json.loads(line) for line in self._files.metrics.read_text().splitlines()]

    def predictor(self, **options: Any) -> Predictor:
        """A `Predictor` with the best weights.

        Args:
            options: As `Predictor` takes them: ``backend``, ``device``, ``threads`` ...

        Raises:
            ConfigError, WeightsError: As `Predictor`.
        """
        from mnv2det.runtime.predictor import Predictor

        return Predictor(self.folder, **options)


def train(
    config: ConfigSource,
    out: PathLike | None = None,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    device: str | None = None,
    **overrides: Any,
) -> Run:
    """Trains what a config describes, in this process.

    Args:
        config: As `load_config` takes it: a file, the name of a config that comes with the package, a folder that
            ``data import`` wrote, nested keys, or a `Config`.
        out: The run folder; None makes it ``runs/NAME`` of the config's or folder's name.
        resume: Whether ``config`` is a run folder that goes on from its newest checkpoint.
        allow_changes: With ``resume``: whether the overrides may change the result.
        device: ``cpu``, ``cuda`` ...; None takes CUDA where there is one.
        overrides: Keys of the config, nested or dotted: ``train={"steps": 500}`` or ``**{"train.steps": 500}``.

    Returns:
        The run.

    Raises:
        ConfigError, DataError, WeightsError: Config, data or weights are wrong; nothing was trained.
        TrainingError: The run failed.
        Interrupted: Ctrl-C came; the step was finished and saved, and ``resume`` goes on.

    Example:
        >>> run = train("data/photos", seed=1, train={"epochs": 50})   # doctest: +SKIP
        >>> run.metrics["det/AP"]                                      # doctest: +SKIP
        >>> train("runs/photos", resume=True)                          # doctest: +SKIP
    """
    path = config if isinstance(config, str | os.PathLike) else None
    if resume:
        if path is None or out is not None:
            raise ConfigError("resume: expected a run folder in the place of the config, and no out")
        RunFolder(path).check_begun()
        folder = Path(path)
    elif out is not None:
        folder = Path(out)
    elif path is not None:
        folder = Path("runs") / run_name(path)
    else:
        raise ConfigError("out: expected a run folder; a config of keys and values has no name to call it by")
    train_run(load_config(config, overrides), folder, resume=resume, allow_changes=allow_changes, device=device)
    return Run(folder)


def evaluate(
    source: ConfigSource, *, weights: PathLike | None = None, device: str | None = None, **overrides: Any
) -> dict[str, float]:
    """Measures trained weights on a config's validation set.

    Args:
        source: A run, or a config whose ``model.weights`` holds a whole model.
        weights: Other weights than the run's best: a file, a run folder, or the name of a release.
        device: As `train` takes it.
        overrides: As `train` takes them.

    Returns:
        Metrics by ``task/metric`` and ``task/metric/class``, 0 ... 1; -1 is undefined.

    Raises:
        ConfigError, DataError, WeightsError: Config, data or weights are wrong.

    Example:
        >>> evaluate("runs/photos", test={"flip": True})["det/AP50"]   # doctest: +SKIP
    """
    from mnv2det.commands.evaluate import evaluate_source
    from mnv2det.commands.weights import provide

    provide(weights if weights is not None else load_config(source, overrides).model.weights)
    metrics: dict[str, float] = evaluate_source(source, overrides, weights=weights, device=device)["metrics"]
    return metrics


def export(
    run: PathLike,
    output: PathLike,
    *,
    form: Literal["complete", "raw"] = "complete",
    int8: bool = False,
    calibrate: PathLike | None = None,
    images: PathLike | None = None,
    splits: int | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    accuracy: bool = False,
) -> dict[str, Any]:
    """Writes a model as a file of another runtime, and compares the file with torch before it is put in place.

    Args:
        run: A run, a weight file, or the name of a release.
        output: The file; its suffix says for which runtime: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (torch).
        form: ``complete``: a picture in, results out. ``raw``: the network alone, the fastest for a `Predictor`.
        int8: Whether to quantise.
        calibrate: With ``int8``: a folder of pictures; None takes the run's training set.
        images: A folder of pictures to compare on; None takes the run's validation set.
        splits: Parts in which bottlenecks are computed, for less memory; None leaves them whole.
        heads: By task, thresholds in place of the model's.
        accuracy: Whether to measure on the run's validation set, before and after.

    Returns:
        As `mnv2det.commands.export.export`: ``output``, ``bytes``, ``differences`` to torch, metrics ``before`` and
        ``after``, and others.

    Raises:
        ConfigError, DataError, WeightsError: It cannot be written so, or what was written differs from torch too much.

    Example:
        >>> export("runs/photos", "model.onnx", int8=True, accuracy=True)["after"]["det/AP"]   # doctest: +SKIP
    """
    from mnv2det.commands.export import export as write_export
    from mnv2det.commands.weights import provide

    provide(run)
    return write_export(
        run,
        output,
        form=form,
        int8=int8,
        calibrate=calibrate,
        images=images,
        splits=splits,
        heads=heads,
        labelled=(os.fspath(run), ()) if accuracy else None,
    )


def check_data(source: ConfigSource, *, workers: int = 0, **overrides: Any) -> Report:
    """Reads every picture and annotation of a data set and lists all that is wrong.

    Args:
        source: A folder in VOC's layout or with COCO-style json, or a config as `load_config` takes it.
        workers: Processes that read; 0 reads in this one.
        overrides: Of a config, as `train` takes them.

    Returns:
        What was found: ``counts()`` by severity, ``findings``, errors first, and ``to_json()`` with all of it.

    Raises:
        ConfigError, DataError: The config is wrong, or there is no such data.

    Example:
        >>> check_data("data/photos").counts()   # doctest: +SKIP
        {'error': 0, 'warning': 1, 'note': 0}
    """
    from mnv2det.check.run import check_data as check

    return check(source, overrides, workers=workers)
