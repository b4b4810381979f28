"""Write tests/fixtures/drawings: two dozen things out of the folder that `python -m vgt.scenes drawings` makes.

    python3 scripts/drawings_fixture.py DRAWINGS

drawings.png holds them all, small: a row for each name, a column for each set. drawings.json is the folder's, cut to
them.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDE = 96
NAMES = (
    "fox", "penguin", "butterfly", "octopus", "cactus", "mushroom", "red apple", "strawberry", "pineapple", "hamburger",
    "doughnut", "carrot", "rocket", "bus", "sailboat", "castle", "guitar", "key", "light bulb", "crown", "balloon",
    "christmas tree", "smiling face with sunglasses", "jack-o-lantern",
)  # fmt: skip


def main(drawings: Path, out: Path) -> None:
    from PIL import Image
    from safetensors.numpy import load_file

    from vgt.scenes.drawing_files import NAMES_FILE, PIXELS_FILE

    listed = json.loads((drawings / NAMES_FILE).read_text(encoding="utf-8"))
    pixels = load_file(drawings / PIXELS_FILE)["pixels"]
    sets = list(dict.fromkeys(one["set"] for one in listed["drawings"]))
    place = {(one["name"], one["set"]): index for index, one in enumerate(listed["drawings"])}
    chosen = [place[name, one] for name in NAMES for one in sets if (name, one) in place]
    sheet = Image.new("RGBA", (len(sets) * SIDE, len(NAMES) * SIDE))
    for index in chosen:
        one = listed["drawings"][index]
        picture = Image.fromarray(pixels[index]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (sets.index(one["set"]) * SIDE, NAMES.index(one["name"]) * SIDE))
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / "drawings.png", optimize=True)
    listed |= {"side": SIDE, "drawings": [listed["drawings"][index] for index in chosen]}
    (out / NAMES_FILE).write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "tests" / "fixtures" / "drawings")
