"""Weight files: safetensors with a JSON header that says all that is needed to run the model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mnv2det.errors import WeightsError
from mnv2det.io import write_atomically
from mnv2det.structures import Fit, Preprocess, Sampling
from mnv2det.version import __version__

HEADER_KEY = "mnv2det"
FORMAT = 1


@dataclass
class Header:
    """What travels with the tensors.

    Attributes:
        backbone: ``{name, args}``; args hold what must agree with the weights (width, padding, eps).
        heads: Task name to ``{name, args}``.
        classes: Task name to its class names.
        preprocess: Input size, mean and std.
        trainable: False if batch norm was folded and not estimated again; the weights are for inference only.
        config: The experiment's configuration, if it was trained here.
        metrics: Metrics measured with these weights.
        provenance: Where the weights come from (file name, sha256, step ...).
        version: Version of the package that wrote the file.
    """

    backbone: dict[str, Any]
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    trainable: bool = True
    config: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    def to_json(self) -> str:
        """The header as one line of JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Header:
        """Reads what `to_json` wrote.

        Args:
            text: The JSON.
            where: Name of the file, for messages.

        Raises:
            WeightsError: It is no such header, or of a newer format.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise WeightsError(f"{where}: written in a newer format than {FORMAT}; update mnv2det")
            fields = data.pop("preprocess")
            tuples = {key: tuple(fields[key]) for key in ("input_size", "mean", "std")}
            preprocess = Preprocess(
                **tuples, fit=fields.get("fit", Preprocess.fit), sampling=fields.get("sampling", Preprocess.sampling)
            )
            header = cls(preprocess=preprocess, **data)
            lengths = (len(preprocess.input_size), len(preprocess.mean), len(preprocess.std))
            names = [*header.classes.values(), [header.backbone["name"]], [h["name"] for h in header.heads.values()]]
            known = preprocess.fit in get_args(Fit) and preprocess.sampling in get_args(Sampling)
            known = known and all(isinstance(name, str) for group in names for name in group)
            if lengths != (2, 3, 3) or not known:
                raise ValueError("wrong lengths or types")
            return header
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{where}: damaged mnv2det header ({type(error).__name__}: {error})") from None


def save_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Header) -> None:
    """Writes a weight file at once: it is complete, or not there.

    Args:
        path: The safetensors file.
        tensors: State dict of a model.
        header: What travels with it.
    """
    header.version = header.version or __version__
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, {HEADER_KEY: header.to_json()})
    write_atomically(Path(path), lambda file: file.write(data))


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Header]:
    """Reads a file that `save_weights` wrote.

    Returns:
        The tensors on the CPU, and the header.

    Raises:
        WeightsError: The file is missing, truncated, no safetensors, or has no header of ours.
    """
    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged safetensors file ({error})") from None


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header alone, without loading tensors.

    Raises:
        WeightsError: As `read_weights`.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such weight file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or a truncated one ({error})") from None
    if HEADER_KEY not in metadata:
        raise WeightsError(f"{path}: a safetensors file, but not written by mnv2det (no '{HEADER_KEY}' header)")
    return Header.from_json(metadata[HEADER_KEY], where=str(path))


def plain(value: Any) -> Any:
    """Turns tuples into lists, as JSON does, so that arguments can be compared."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
