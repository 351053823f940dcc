"""ncnn on the CPU, the runtime of many Android and iOS programs: ``.param`` and ``.bin``, converted by pnnx."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnv2det.errors import ConfigError, WeightsError
from mnv2det.graphs.graph import Raw
from mnv2det.graphs.program import INPUT, ExportMetadata, ExportProgram, quiet_exporters
from mnv2det.graphs.sidecar import read_sidecar, sidecar_of, write_sidecar
from mnv2det.io import cores, import_optional
from mnv2det.registry import RUNTIMES
from mnv2det.runtime.base import Options, Outputs, Runtime, Session
from mnv2det.structures import Frame


@RUNTIMES.register("ncnn")
class NcnnRuntime(Runtime):
    """Writes and reads ``.param``, the graph, with the weights beside it as ``.bin`` and the metadata as JSON."""

    format = "ncnn"
    suffix = ".param"
    ending = ".ncnn.param"  # and .ncnn.bin: OpenVINO's weights are model.bin
    reads = (".param",)
    forms = ("raw",)
    fp16 = True
    library = "ncnn"
    converter = "pnnx"
    extra = "ncnn"

    def write(self, program: ExportProgram, path: Path) -> None:
        """See `Runtime`; the network takes one picture of the model's own size."""
        pnnx = import_optional("pnnx", self.extra)
        module = program.module()
        assert isinstance(module, Raw)
        height, width = program.metadata.header.preprocess.input_size
        planes = torch.zeros(1, 3, height, width)
        with torch.no_grad(), quiet_exporters():
            shapes = {name: tuple(value.shape[1:]) for name, value in module.of_planes(planes).items()}
            # the only form that pnnx reads
            traced = torch.jit.trace(_OfPlanes(module), (planes,), check_trace=False)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            traced.save(str(Path(folder) / "network.pt"))
            arguments = [pnnx.EXEC_PATH, "network.pt", f"inputshape=[1,3,{height},{width}]"]
            arguments.append(f"fp16={int(program.metadata.precision == 'fp16')}")
            done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
            graph, weights = (Path(folder) / f"network.ncnn{suffix}" for suffix in (".param", ".bin"))
            if not (graph.is_file() and weights.is_file()):
                said = " ".join((done.stderr or done.stdout).split())[-200:]
                raise ConfigError(f"pnnx cannot convert this model (exit code {done.returncode}: {said})")
            path.write_text(_name_blobs(graph.read_text(), list(shapes)))
            path.with_suffix(".bin").write_bytes(weights.read_bytes())
        taken = {"shape": [3, height, width], "layout": "CHW", "type": "float32", "pixels": "RGB, 0 to 255"}
        write_sidecar(program, self._network(path), {INPUT: taken}, shapes)

    def open(self, path: Path, options: Options) -> NcnnSession:
        """See `Runtime`."""
        library = self.import_library()
        files = self._network(path)
        metadata, facts = read_sidecar(path, files)
        network = library.Net()
        network.opt.num_threads = options.threads or cores()
        # these are for processors that compute with such numbers; float32 is what was asked for
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(network.opt, name, False)
        if any((network.load_param(str(files[0])), network.load_model(str(files[1])))):
            raise WeightsError(f"{path}: ncnn cannot load it")
        return NcnnSession(library, network, metadata, facts["outputs"])

    def files(self, path: Path) -> list[Path]:
        """See `Runtime`."""
        return [*self._network(path), sidecar_of(path)]

    def _network(self, path: Path) -> list[Path]:
        return [path, path.with_suffix(".bin")]


class NcnnSession(Session):
    """An ``ncnn.Net`` of an exported model, which takes one picture at a time.

    Args:
        library: The module ``ncnn``.
        network: The ``ncnn.Net``.
        metadata: Of the file.
        shapes: Of the outputs for one picture, by name.
    """

    prefers_single_pictures = True

    def __init__(
        self, library: Any, network: Any, metadata: ExportMetadata, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        self.library, self.network, self.metadata, self.shapes = library, network, metadata, shapes

    def run(self, image: NDArray[np.uint8], frame: Frame | None = None) -> Outputs:
        """See `Session`."""
        results = [self._run(picture) for picture in image]
        return {name: torch.stack([result[name] for result in results]) for name in self.shapes}

    def _run(self, picture: NDArray[np.uint8]) -> dict[str, Tensor]:
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
        extractor = self.network.create_extractor()
        extractor.input(INPUT, self.library.Mat(planes).clone())
        values = {}
        for name, shape in self.shapes.items():
            failed, value = extractor.extract(name)
            if failed:
                raise WeightsError(f"ncnn cannot compute '{name}': too little memory, or a damaged file")
            values[name] = torch.from_numpy(np.array(value)).reshape(shape)
        return values


class _OfPlanes(nn.Module):
    """A network that takes pixels as planes and returns its tensors in a row, as a trace for pnnx needs it."""

    def __init__(self, raw: Raw) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, planes: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.raw.of_planes(planes).values())


def _name_blobs(graph: str, outputs: list[str]) -> str:
    """Gives input and outputs of a ``.param`` our names in place of pnnx's ``in0``, ``out0``, ``out1`` ...

    A line is: type, name, numbers of inputs and outputs, these, then settings.
    """
    names = {"in0": INPUT, **{f"out{number}": name for number, name in enumerate(outputs)}}
    lines = graph.splitlines()
    for row, line in enumerate(lines[2:], start=2):
        kind, name, inputs, produced, *rest = line.split()
        blobs = int(inputs) + int(produced)
        rest = [names.get(word, word) if index < blobs else word for index, word in enumerate(rest)]
        lines[row] = " ".join([f"{kind:<24} {name:<24} {inputs} {produced}", *rest])
    return "\n".join(lines) + "\n"
