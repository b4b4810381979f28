"""Draw the pictures that come with the pack for training a LoRA: pictures/crescent and pictures/outlines; and write
pictures/keep.txt, prompts of what a model must not forget meanwhile.

    python3 scripts/lora_pictures.py DRAWINGS

DRAWINGS is the folder that `python -m vgt.scenes drawings` makes; the prompts name things in it.
24 pictures each of what the bundled model has never seen, with captions; vgt/scenes/lessons.py says what they show and
how a model that has learnt it is judged.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = 224
"""Pixels of a side: what the bundled model draws."""
KEPT = 60
"""Prompts to keep of shapes, and as many of drawings."""


def main(drawings: Path, folder: Path) -> None:
    from vgt.scenes.drawings import Drawings
    from vgt.scenes.lessons import LESSONS, kept, write

    for lesson in LESSONS:
        shutil.rmtree(folder / lesson, ignore_errors=True)
        write(lesson, folder / lesson, SIZE)
        print(folder / lesson)
    (folder / "keep.txt").write_text("\n".join(kept(KEPT, Drawings(drawings))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "pictures")
