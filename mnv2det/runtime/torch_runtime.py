"""torch: a model of ours as it is, or a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnv2det.errors import ConfigError, WeightsError
from mnv2det.graphs.graph import Raw
from mnv2det.graphs.program import ExportMetadata, ExportProgram, quiet_exporters
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session, one_line
from mnv2det.runtime.strips.backbone import memory_efficient
from mnv2det.structures import Frame


@RUNTIMES.register("torch")
class TorchRuntime(Runtime):
    """Runs a model directly; writes and reads ``.pt2``."""

    format = "torch"
    suffix = ".pt2"
    reads = (".pt2",)
    precisions = ("fp32", "bf16")
    devices = ("cpu", "cuda")
    native = True
    library = "torch"

    def write(self, program: ExportProgram, path: Path) -> None:
        """See `Runtime`."""
        traced = program.trace()
        with quiet_exporters():
            torch.export.save(traced, path, extra_files=program.metadata.entries())

    def open(self, path: Path, options: Options) -> TorchSession:
        """See `Runtime`; bfloat16 is autocast."""
        if options.device.type != "cpu":
            raise ConfigError(f"{path}: an exported program runs on the CPU, not on {options.device}")
        _set_threads(options)
        entries: dict[str, Any] = dict.fromkeys(ExportMetadata.KEYS, "")
        try:
            program = torch.export.load(path, extra_files=entries)
        except Exception as error:  # whatever its archive reader stumbles over
            raise WeightsError(f"{path}: torch cannot load it ({one_line(error)})") from None
        metadata = ExportMetadata.of({key: value for key, value in entries.items() if value}, where=str(path))
        return TorchSession(program.module(), metadata, device=options.device, autocast=options.precision == "bf16")

    def load(self, program: ExportProgram, options: Options) -> TorchSession:
        """Runs a raw program's model without a file; bfloat16 weights if that is the precision."""
        _set_threads(options)
        raw = Raw(program.model, torch.bfloat16 if options.precision == "bf16" else torch.float32)
        raw = raw.to(options.device).to(memory_format=torch.channels_last)
        if options.memory_budget is not None:
            raw = memory_efficient(raw, options.memory_budget or None)
        return TorchSession(raw, program.metadata, device=options.device)


class TorchSession(Session):
    """A model of ours in torch, or an exported program.

    Args:
        network: Maps uint8 (B, H, W, 3) to tensors by name.
        metadata: Of the model.
        device: Where it computes.
        autocast: Whether convolutions are computed in bfloat16 from float32 weights.
    """

    def __init__(
        self, network: nn.Module, metadata: ExportMetadata, *, device: torch.device, autocast: bool = False
    ) -> None:
        self.network, self.metadata, self.device, self.autocast = network, metadata, device, autocast
        self.float_pixels = isinstance(network, Raw)
        self.any_size = self.float_pixels or metadata.any_size
        if autocast or (isinstance(network, Raw) and network.dtype == torch.bfloat16):
            self.precision = "bf16"

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Session`."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs: Outputs = self.network(torch.from_numpy(image).to(self.device))
        return outputs


def _set_threads(options: Options) -> None:
    """Sets torch's threads, which are the whole process's."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
