"""An annotation format of somebody else: one text file, a line ``PICTURE CLASS X1 Y1 X2 Y2`` for each box.

A line with a picture alone lists it without boxes.
"""

from pathlib import Path

from mnv2det.data.formats.base import Format
from mnv2det.data.formats.cleaning import Cleaning, copy_pictures, copy_place
from mnv2det.data.formats.records import Box, Picture, Records
from mnv2det.data.images import inside
from mnv2det.errors import DataError
from mnv2det.registry import DATASETS


@DATASETS.register("toy_lines")
class ToyLines(Format):
    """Boxes in lines of text.

    Args:
        root: The data folder.
        lines: The text file, below the root; pictures lie beside it.
        names: Class list to hold to; None takes the names found, sorted.
    """

    def __init__(self, *, root: Path, lines: str, names: tuple[str, ...] | None = None) -> None:
        self.path = inside(root, lines, where="data set toy_lines: lines")
        self.names = names

    def read(self) -> Records:
        """See `Format.read`."""
        folder = self.path.parent
        records = Records(folder, str(self.path), f"lines of boxes, {self.path}", [self.path], [folder])
        indices: dict[str, int] = {}
        names = set()
        for position, line in enumerate(self._lines()):
            file, *words = line.split()
            index = indices.setdefault(file, len(indices))
            if index == len(records.pictures):
                records.pictures.append(Picture(file, file))
            try:
                name, *numbers = words or ("", 0, 0, 0, 0)
                corners = [float(number) for number in numbers]
                if len(corners) != 4:
                    raise ValueError
            except ValueError:
                what, place = f"expected PICTURE CLASS X1 Y1 X2 Y2, got '{line[:80]}'", f"line {position + 1}"
                records.add_problem("box_malformed", self.path, what, place=place, index=index, position=position)
                continue
            if words:
                names.add(name)
                records.add_box(Box(index, name, corners, position=position))
        records.classes["labels"] = sorted(names) if self.names is None else list(self.names)
        return records

    def _lines(self) -> list[str]:
        try:
            return [line for line in self.path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: cannot read the lines ({error})") from None

    def write_clean(self, records: Records, cleaning: Cleaning, root: Path, target: Path) -> None:
        """Writes the lines that are kept, clipped boxes clipped."""
        kept = {records.pictures[index].file for index in copy_pictures(records, cleaning, root, target)}
        left_out = {position for _, position in cleaning.annotations}
        clipped = {position: corners for (_, position), corners in cleaning.corners.items()}
        lines = []
        for position, line in enumerate(self._lines()):
            file, name, *_ = [*line.split(), ""]
            if file in kept and position not in left_out:
                corners = clipped.get(position)
                lines.append(line if corners is None else " ".join([file, name, *(f"{n:g}" for n in corners)]))
        copy_place(self.path, root, target).write_text("".join(f"{line}\n" for line in lines), "utf-8")
