"""A runtime from outside the package: TorchScript in one file. To use it, import this module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnv2det.errors import ConfigError, WeightsError
from mnv2det.graphs.program import ExportMetadata, ExportProgram
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session
from mnv2det.structures import Frame


@RUNTIMES.register("toy")
class ToyRuntime(Runtime):
    """Writes and reads ``.toy``, of the raw form only: its traces hold for pictures of one size."""

    format = "toyscript"
    suffix = ".toy"
    reads = (".toy",)
    library = "torch"

    def write(self, program: ExportProgram, path: Path) -> None:
        if program.metadata.form == "complete":
            raise ConfigError("the format toyscript has no complete export; use --form raw")
        with torch.no_grad():
            traced = torch.jit.trace(program.module(), (program.example[:1],), strict=False, check_trace=False)
        torch.jit.save(traced, path, _extra_files=program.metadata.entries())

    def open(self, path: Path, options: Options) -> ToySession:
        entries = dict.fromkeys(ExportMetadata.KEYS, "")
        try:
            network = torch.jit.load(path, _extra_files=entries)
        except RuntimeError as error:
            raise WeightsError(f"{path}: no TorchScript ({str(error).splitlines()[0]})") from None
        texts = {key: value.decode() if isinstance(value, bytes) else value for key, value in entries.items()}
        return ToySession(network, ExportMetadata.of(texts, where=str(path)))


class ToySession(Session):
    """A traced network, for one picture at a time."""

    prefers_single_pictures = True

    def __init__(self, network: torch.jit.ScriptModule, metadata: ExportMetadata) -> None:
        self.network, self.metadata = network, metadata

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        with torch.no_grad():
            results = [self.network(torch.from_numpy(picture)[None]) for picture in image]
        return {name: torch.cat([result[name] for result in results]) for name in results[0]}
