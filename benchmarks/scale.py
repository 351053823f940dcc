"""Reads annotations of COCO's size: python benchmarks/scale.py [--images N] [--masks].

Makes a json as COCO's (118,287 images, 860,001 annotations with outlines; seed 0), and reads it in a process of its own
each: by this package for training, twice, by pycocotools, and by Python's json alone. Prints seconds, the peak of
memory, and what stays of it, above what the process takes before reading.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES, ANNOTATIONS, CLASSES = 118_287, 860_001, 80
MEASURE = """
import gc, resource, sys, time
{imports}
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
gc.collect()
base, start = resident(), time.perf_counter()
{read}
seconds = time.perf_counter() - start
gc.collect()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(f"{{seconds:.1f}} {{peak - base:.0f}} {{resident() - base:.0f}}")
"""


def write_json(path: Path, images: int) -> None:
    """Writes a json with outlines of 8 to 40 corners."""
    rng = random.Random(0)
    ids = rng.sample(range(1, 600_000), images)
    categories = sorted(rng.sample(range(1, 91), CLASSES))
    with open(path, "w", encoding="ascii") as file:
        file.write('{"info": {}, "images": [')
        for number, identifier in enumerate(ids):
            file.write(
                f'{", " if number else ""}{{"license": 3, "file_name": "{identifier:012d}.jpg", "height": 480,'
                f' "width": 640, "coco_url": "http://images.cocodataset.org/train2017/{identifier:012d}.jpg",'
                f' "date_captured": "2013-11-14 11:18:45", "id": {identifier}}}'
            )
        file.write('], "annotations": [')
        for number in range(round(ANNOTATIONS * images / IMAGES)):
            x, y, w, h = rng.uniform(0, 500), rng.uniform(0, 350), rng.uniform(4, 130), rng.uniform(4, 120)
            corners = rng.randint(8, 40)
            turns = [2 * math.pi * corner / corners for corner in range(corners)]
            outline = ", ".join(
                f"{x + w / 2 * (1 + math.cos(turn)):.2f}, {y + h / 2 * (1 + math.sin(turn)):.2f}" for turn in turns
            )
            file.write(
                f'{", " if number else ""}{{"segmentation": [[{outline}]], "area": {w * h * 0.78:.4f}, "iscrowd": 0,'
                f' "image_id": {rng.choice(ids)}, "bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}],'
                f' "category_id": {rng.choice(categories)}, "id": {number + 1}}}'
            )
        file.write('], "categories": [')
        file.write(", ".join(f'{{"id": {category}, "name": "class {category}"}}' for category in categories) + "]}")


def measure(name: str, imports: str, read: str, folder: str) -> None:
    """Prints a row of the table; what is kept of a read file is kept in the folder."""
    code, environment = MEASURE.format(imports=imports, read=read), {**os.environ, "MNV2DET_CACHE": folder}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    seconds, peak, stays = done.stdout.strip().splitlines()[-1].split()
    print(f"| {name} | {seconds} | {peak} | {stays} |", flush=True)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="default: %(default)s")
    parser.add_argument("--masks", action="store_true", help="also with masks, which takes longer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.json")
        write_json(path, arguments.images)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {arguments.images} images\n")
        print("| reader | seconds | peak, MB | stays, MB |\n|---|---|---|---|", flush=True)
        ours = "from pathlib import Path\nfrom mnv2det.data.formats.coco import COCO"
        for masks in (None, "coco") if arguments.masks else (None,):
            read = (
                f"data = COCO(root=Path({folder!r}), annotations='train.json', images='.', masks={masks!r}).dataset()"
            )
            for again in ("", ", the second time"):
                measure("mnv2det" + (", with masks" if masks else "") + again, ours, read, folder)
        measure("pycocotools", "from pycocotools.coco import COCO", f"data = COCO({str(path)!r})", folder)
        measure("json", "import json", f"data = json.loads(open({str(path)!r}, 'rb').read())", folder)


if __name__ == "__main__":
    main()
