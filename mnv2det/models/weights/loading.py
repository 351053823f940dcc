"""Initial weights: where they come from and how much of them fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnv2det.errors import WeightsError, near
from mnv2det.models.weights.files import Header, plain, read_weights
from mnv2det.structures import Preprocess

if TYPE_CHECKING:
    from mnv2det.models.head import ClassRows
    from mnv2det.models.model import Model

TORCHVISION = "torchvision:"


def open_weights(source: str) -> tuple[dict[str, Tensor], Header]:
    """Reads weights from one of our files or from torchvision.

    Args:
        source: A safetensors file, or ``torchvision:IMAGENET1K_V2`` (downloaded by torchvision
            into its cache when it is not there yet).

    Raises:
        WeightsError: There is no such file or enum, or it is damaged.
    """
    return _from_enum(source) if source.startswith(TORCHVISION) else read_weights(source)


def convert_torchvision(state: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], Header]:
    """Renames a state dict of torchvision's ``mobilenet_v2``, of any width.

    Args:
        state: ``features.0.0.weight`` ... and, if it has one, ``classifier.1.*``.
        where: Name of the source, for messages.

    Returns:
        Tensors under our names (backbone, and head ``cls`` with a classifier), and the header.

    Raises:
        WeightsError: A tensor is missing, superfluous or of an unexpected shape; names it.
    """
    from mnv2det.models.mobilenet_v2 import MobileNetV2

    theirs = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    if "features.18.0.weight" not in theirs or "features.0.0.weight" not in theirs:
        raise WeightsError(f"{where}: not a torchvision mobilenet_v2: tensor 'features.18.0.weight' is missing")
    width = width_of(
        theirs["features.0.0.weight"].shape[0],
        [
            theirs[f"features.{n}.conv.{1 if n == 1 else 2}.weight"].shape[0]
            for n in range(1, 18)
            if f"features.{n}.conv.{1 if n == 1 else 2}.weight" in theirs
        ],
        where=where,
    )
    args: dict[str, Any] = {"width": width, "padding": "symmetric", "norm_eps": 1e-5}
    ours = MobileNetV2(**args).state_dict()
    # both list the same convolutions and norms in the order of the network
    if len(ours) != len(theirs):
        raise WeightsError(f"{where}: {len(theirs)} backbone tensors, expected {len(ours)}")
    tensors: dict[str, Tensor] = {}
    for (name, like), (other, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if like.shape != tensor.shape:
            raise WeightsError(f"{where}: tensor '{other}' is {list(tensor.shape)}, expected {list(like.shape)}")
        tensors[f"backbone.{name}"] = tensor
    header = Header(
        backbone={"name": "mobilenet_v2", "args": args},
        preprocess=Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        provenance={"source": where},
    )
    if "classifier.1.weight" in state:
        tensors["heads.cls.linear.weight"] = state["classifier.1.weight"]
        tensors["heads.cls.linear.bias"] = state["classifier.1.bias"]
        header.heads = {"cls": {"name": "classifier", "args": {}}}
        header.classes = {"cls": [str(n) for n in range(len(state["classifier.1.bias"]))]}
    return tensors, header


def width_of(stem: int, outputs: list[int], *, where: str) -> float:
    """The width multiplier whose channel counts these are.

    Args:
        stem: Channels of the first convolution.
        outputs: Channels of the 17 bottlenecks.
        where: Name of the source, for messages.

    Raises:
        WeightsError: No multiplier from 0.05 to 4 in steps of 0.05 gives them.
    """
    from mnv2det.models.layers import make_divisible
    from mnv2det.models.mobilenet_v2 import TABLE_2

    # the usual multipliers first: several can give the same channels
    for width in (1.0, 0.35, 0.5, 0.75, 1.3, 1.4, *(round(0.05 * n, 2) for n in range(1, 81))):
        rows = [make_divisible(base * width) for _, base, repeats, _ in TABLE_2 for _ in range(repeats)]
        if stem == make_divisible(32 * width) and outputs == rows:
            return width
    raise WeightsError(f"{where}: channels {[stem, *outputs]} are those of no MobileNetV2 width multiplier")


def head_source(task: str, kind: str, header: Header | None) -> str | None:
    """The task of a weight file whose head a new one of this kind can start from, None if there is none."""
    if header is None:
        return None
    alike = [name for name, head in header.heads.items() if head["name"] == kind]
    return task if task in alike else alike[0] if len(alike) == 1 else None


def load_into(model: Model, tensors: Mapping[str, Tensor], header: Header, *, where: str) -> list[str]:
    """Copies what fits: the whole backbone, and of heads of the same kind and structure all but other classes.

    With another class list a head keeps its layers; in those that have a row per class, classes of
    the same name keep theirs, and the others start anew.

    Args:
        model: With fresh weights.
        tensors: As in a weight file.
        header: Its header.
        where: Name of the source, for messages.

    Returns:
        Lines that say what was loaded and what was left out.

    Raises:
        WeightsError: A tensor of the backbone is missing or of another shape; names them.
    """
    own: dict[str, Tensor] = model.state_dict()
    names = [name for name in own if name.startswith("backbone.")]
    notes = []
    # a segmenter's file ends before the last convolution, which a detector reads
    if not any(name.startswith("backbone.last.") for name in tensors):
        fresh = [name for name in names if name.startswith("backbone.last.")]
        names = [name for name in names if name not in fresh]
        notes += [f"{where}: backbone.last starts from random weights (the file ends before it)"] if fresh else []
    if wrong := [problem for name in names if (problem := _misfit(name, own[name], tensors))]:
        raise WeightsError(f"{where}: {len(wrong)} of {len(names)} backbone tensors do not fit: {'; '.join(wrong[:3])}")
    chosen = {name: tensors[name] for name in names}
    notes.append(f"{where}: loaded backbone ({len(names)} tensors)")
    used = set()
    for task in model.heads:
        source = head_source(task, model.spec["heads"][task]["name"], header)
        found, note = _head_tensors(model, task, source, own, tensors, header)
        chosen |= found
        used |= {source} if found else set()
        notes.append(f"{where}: {note}")
    if left := sorted(f"heads.{task}" for task in header.heads if task not in used):
        notes.append(f"{where}: left out {', '.join(left)}")
    model.load_state_dict({**own, **chosen})
    return notes


def _head_tensors(
    model: Model,
    task: str,
    source: str | None,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    header: Header,
) -> tuple[dict[str, Tensor], str]:
    """What one head starts from, by our names, and a line that says so."""
    head: Any = model.heads[task]
    anew = f"heads.{task} starts from random weights"
    if source is None:
        return {}, f"{anew} (the file has no head of its kind)"
    kept, theirs = model.spec["heads"][task]["args"], header.heads[source]["args"]
    for key in head.structure:
        if key in theirs and plain(kept[key]) != plain(theirs[key]):
            return {}, f"{anew} (its {key} is {plain(kept[key])}, the file's {plain(theirs[key])})"
    prefix, names, old = f"heads.{task}.", model.classes[task], header.classes[source]
    rows = head.class_rows() if names != old else {}
    found: dict[str, Tensor] = {}
    fresh: set[str] = set()
    for name in (name for name in own if name.startswith(prefix)):
        other = f"heads.{source}.{name.removeprefix(prefix)}"
        part = rows.get(name.removeprefix(prefix))
        if other not in tensors and name.removeprefix(prefix).startswith(head.optional):
            layer, _, rest = name.removeprefix(prefix).partition(".")
            fresh.add(layer)
            if rest == "1.weight":
                # what they add starts from nothing, so that the head goes on as it was
                found[name] = torch.zeros_like(own[name])
            continue
        if part is not None and other in tensors:
            found[name] = _keep_rows(own[name], tensors[other], part, names, old)
        elif problem := _misfit(other, own[name], tensors):
            return {}, f"{anew} ({problem})"
        else:
            found[name] = tensors[other]
    but = f"; {', '.join(sorted(fresh))} starts from fresh weights" if fresh else ""
    if names == old:
        return found, f"loaded heads.{task} ({len(found)} tensors){but}"
    same = [name for name in names if name in old]
    kept_names = f"{', '.join(same[:8])}{' ...' if len(same) > 8 else ''} keep theirs" if same else "none keeps its own"
    count = len(names) - len(same)
    return found, f"loaded heads.{task} but for its class rows: {count} of {len(names)} start anew, {kept_names}{but}"


def _keep_rows(own: Tensor, theirs: Tensor, part: ClassRows, names: Sequence[str], old: Sequence[str]) -> Tensor:
    """Fresh rows, with those of private channels and of classes that both lists name taken over."""
    rest = tuple(own.shape[1:])
    if tuple(theirs.shape) != (part.groups * (part.private + len(old)), *rest):
        return own
    mine = own.clone().view(part.groups, part.private + len(names), *rest)
    given = theirs.to(own.dtype).view(part.groups, part.private + len(old), *rest)
    mine[:, : part.private] = given[:, : part.private]
    both = [(names.index(name), old.index(name)) for name in names if name in old]
    if both:
        to, of = (torch.tensor(column) + part.private for column in zip(*both, strict=True))
        mine[:, to] = given[:, of]
    return mine.view(-1, *rest)


def _misfit(name: str, own: Tensor, tensors: Mapping[str, Tensor]) -> str:
    if name not in tensors:
        return f"'{name}' is missing{near(name, tensors) if name.startswith('backbone') and len(tensors) < 400 else ''}"
    if tensors[name].shape != own.shape:
        return f"'{name}' is {list(tensors[name].shape)}, expected {list(own.shape)}"
    return ""


def _from_enum(source: str) -> tuple[dict[str, Tensor], Header]:
    from torchvision.models import MobileNet_V2_Weights

    name = source.removeprefix(TORCHVISION)
    known = [member.name for member in MobileNet_V2_Weights]
    if name not in known and name != "DEFAULT":
        raise WeightsError(f"{source}: torchvision has no such MobileNetV2 weights{near(name, known)}")
    member = MobileNet_V2_Weights[name]
    try:
        state = member.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        cache = Path("~/.cache/torch/hub/checkpoints").expanduser()
        raise WeightsError(
            f"{source}: download failed ({error}); put {member.url.rsplit('/', 1)[-1]} into {cache} by hand"
        ) from None
    tensors, header = convert_torchvision(state, where=source)
    header.classes = {"cls": list(member.meta["categories"])}
    return tensors, header
