"""What a runtime is: a library that runs networks, and the file format that it is fed with.

A runtime of your own is one file: a `Runtime` and a `Session`, registered in a module that your program imports:

    @RUNTIMES.register("my_runtime")
    class MyRuntime(Runtime): ...

``--format``, ``--backend``, the suffixes of exported files and the rows of ``bench`` then have it, too.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv2det.errors import ConfigError, near
from mnv2det.graphs.program import ExportMetadata, ExportProgram, Form
from mnv2det.io import import_optional
from mnv2det.models.depthwise import has_bf16_kernels
from mnv2det.models.head import Head
from mnv2det.models.model import Model
from mnv2det.registry import RUNTIMES
from mnv2det.structures import Frame, TaskResult

Precision = Literal["fp32", "bf16"]
Outputs = dict[str, Tensor | TaskResult]


@dataclass(frozen=True)
class Options:
    """How a session computes.

    Attributes:
        device: Where.
        threads: That one prediction uses; None takes all cores.
        precision: Of everything that is not int8 in the file.
        memory_budget: Bytes of activations that the backbone may hold at once (paper, section 5.1); 0: as little
            as costs no time, None: no limit.

    Raises:
        ConfigError: A value is none of these.
    """

    device: torch.device = torch.device("cpu")
    threads: int | None = None
    precision: Precision = "fp32"
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision '{self.precision}': expected fp32 or bf16; int8 comes from a quantized file")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: expected at least 1, got {self.threads}")


class Session(ABC):
    """A loaded network. Threads may share it.

    Attributes:
        metadata: What the network computes.
        precision: Of everything that is not int8.
        any_size: Whether the raw form also takes inputs of other sizes than the model's.
        float_pixels: Whether `run` also takes float32 pixels from 0 to 255, as scaled pictures have them.
        prefers_single_pictures: Whether pictures take less time one by one than in a batch.
    """

    metadata: ExportMetadata
    precision: Precision = "fp32"
    any_size: bool = False
    float_pixels: bool = False
    prefers_single_pictures: bool = False

    def attach_heads(self, heads: Mapping[str, Head]) -> None:
        """Lets a session compile post-processing for these heads, by task; called once, before the first `run`."""
        return

    @abstractmethod
    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """Computes the network's outputs.

        Args:
            image: uint8 (B, H, W, 3), RGB, C-contiguous.
            frame: Where the picture lies in the input, if there is one picture only. A session that post-processes
                may then return a task's result under the task's name.

        Returns:
            Tensors named ``task.name``, whose first axis is the batch; they are the caller's to keep.
        """


class Runtime(ABC):
    """A library that runs networks on this machine. It holds no state.

    Args:
        name: Under which it is registered; ``--backend`` selects it.

    Attributes:
        format: The name by which ``--format`` selects its files.
        suffix: Of the files that it writes, with the dot.
        ending: Of a file's name where the user gives none; by default the suffix.
        reads: Suffixes of the files that it opens.
        precisions: In which it runs a float network.
        forms: Of `ExportMetadata` that it writes; the first is the default.
        int8: Whether it holds int8 networks.
        fp16: Whether it holds weights in half precision.
        devices: Types of device that it runs on; the first is the default.
        native: Whether it runs a `Model` of ours as it is, without a file, on any device of ``devices`` and within
            a memory budget. Only `mnv2det.runtime.torch_runtime` does.
        library: Module that must be installed.
        converter: Another one that must be installed to write a file; empty if there is none.
        extra: The extra of this package that installs both.
    """

    format: ClassVar[str]
    suffix: ClassVar[str]
    ending: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    forms: ClassVar[tuple[Form, ...]] = ("complete", "raw")
    int8: ClassVar[bool] = False
    fp16: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[bool] = False
    library: ClassVar[str]
    converter: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def write(self, program: ExportProgram, path: Path) -> None:
        """Writes a file that states ``program.metadata``; other files beside it are in `files`.

        Raises:
            ConfigError: The program has no such form, or a library is not installed.
        """

    def quantize(self, program: ExportProgram, pictures: Iterable[NDArray[np.uint8]]) -> ExportProgram:
        """The program in int8, for `write`; by default by way of ONNX.

        Args:
            program: In float32.
            pictures: To calibrate on, uint8 (H, W, 3) each.

        Raises:
            ConfigError: As `ExportProgram.quantize`.
        """
        return program.quantize(pictures)

    @abstractmethod
    def open(self, path: Path, options: Options) -> Session:
        """Opens a file that ends in one of ``reads``; `check` has passed.

        Raises:
            ConfigError: The library is not installed.
            WeightsError: The file is damaged or not ours.
        """

    def load(self, program: ExportProgram, options: Options) -> Session:
        """Opens a program that is in no file; by default by way of a temporary one."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"model{self.suffix}"
            self.write(program, path)
            return self.open(path, options)

    def files(self, path: Path) -> list[Path]:
        """All files that make up the exported file ``path``."""
        return [path]

    def available(self) -> bool:
        """Whether its library is installed; it is not imported."""
        return importlib.util.find_spec(self.library) is not None

    def can_write(self) -> bool:
        """Whether what it needs to write a file and to open it is installed; nothing is imported."""
        return self.available() and (not self.converter or importlib.util.find_spec(self.converter) is not None)

    def import_library(self) -> Any:
        """Its library.

        Raises:
            ConfigError: It is not installed; the message says which command installs it.
        """
        return import_optional(self.library, self.extra)

    def check(self, options: Options) -> None:
        """Refuses what this runtime or this processor cannot do.

        Raises:
            ConfigError: The device, the precision or a memory budget is not to be had.
        """
        if options.device.type not in self.devices:
            raise ConfigError(f"backend '{self.name}' runs on {' or '.join(self.devices)}, not on {options.device}")
        if options.precision not in self.precisions:
            others = [runtime.name for runtime in runtimes() if options.precision in runtime.precisions]
            raise ConfigError(f"{self.name} has no {options.precision}; use {' or '.join(others)}")
        if options.precision == "bf16" and options.device.type == "cpu" and not has_bf16_kernels():
            raise ConfigError("precision bf16: this processor has none (AVX-512 needed); use fp32")
        if options.memory_budget is not None and not self.native:
            able = [runtime.name for runtime in runtimes() if runtime.native]
            raise ConfigError(f"memory budget: only the {' or '.join(able)} backend has it, not '{self.name}'")


def runtimes() -> list[Runtime]:
    """All that are registered, by name."""
    return [RUNTIMES.get(name)(name) for name in RUNTIMES.names()]


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a file's suffix is that of an exported model that some runtime opens."""
    return bool(readers(path))


def readers(path: str | os.PathLike[str]) -> list[Runtime]:
    """The runtimes that open a file of this suffix, those first that also write it."""
    suffix = Path(path).suffix.lower()
    return sorted((item for item in runtimes() if suffix in item.reads), key=lambda item: item.suffix != suffix)


def writer(path: str | os.PathLike[str], format: str | None = None) -> Runtime:
    """The runtime that writes a file of this name.

    Args:
        path: The file to write.
        format: The format asked for; None goes by the suffix.

    Raises:
        ConfigError: The two disagree, or one of them is unknown.
    """
    suffix = Path(path).suffix.lower()
    able = runtimes() if format is None else [runtime_of_format(format)]
    for runtime in able:
        if runtime.suffix == suffix:
            return runtime
    other = next((runtime for runtime in runtimes() if runtime.suffix == suffix), None)
    if other is not None:
        raise ConfigError(f"{path}: ends in {suffix}, which is {other.format}, but the format given is {format}")
    wanted = dict.fromkeys(runtime.suffix for runtime in able)
    raise ConfigError(f"{path}: expected a name that ends in {' or '.join(wanted)}")


def runtime_of_format(format: str) -> Runtime:
    """The runtime that writes a format.

    Raises:
        ConfigError: None does; names the nearest format.
    """
    formats = {runtime.format: runtime for runtime in runtimes()}
    if format not in formats:
        raise ConfigError(f"format '{format}'{near(format, formats)}")
    return formats[format]


def choose(backend: str, able: Sequence[Runtime], what: str, precision: str) -> Runtime:
    """The runtime that a user asks for.

    Args:
        backend: Its name, or ``auto`` for the first of ``able`` that has the precision and is installed.
        able: Those that can open what is to be run, the preferred one first.
        what: What is to be run, for messages.
        precision: As `Options` has it.

    Raises:
        ConfigError: There is no such runtime, or it is not able to.
    """
    if backend == "auto":
        fitting = [runtime for runtime in able if precision in runtime.precisions] or list(able)
        return next((runtime for runtime in fitting if runtime.available()), fitting[0])
    if backend not in RUNTIMES.names():
        raise ConfigError(f"backend '{backend}'{near(backend, ('auto', *RUNTIMES.names()))}")
    for runtime in able:
        if runtime.name == backend:
            return runtime
    raise ConfigError(f"backend '{backend}' does not read {what}; {' or '.join(item.name for item in able)} does")


def write(model: Model, metadata: ExportMetadata, path: str | os.PathLike[str], *, splits: int | None = None) -> None:
    """Writes a model, unchecked, in the format that the file's suffix names.

    `mnv2det.commands.export.export` also compares the file with torch.

    Args:
        model: Any; it is copied.
        metadata: As `ExportProgram` takes it, as is ``splits``.
        path: The file; its suffix is that of a runtime.
        splits: Parts of the bottlenecks' expanded channels; None leaves them whole.

    Raises:
        ConfigError: No runtime writes such a file, or the model cannot be written.
    """
    writer(path).write(ExportProgram(model, metadata, splits=splits), Path(path))


def one_line(error: Exception) -> str:
    """A library's error message on one line, shortened."""
    return " ".join(str(error).split())[:200]
