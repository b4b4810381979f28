"""Small folders of drawings: the tests' own, and some of the real ones; and npm packages that such could come from."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from vgt.scenes import drawing_files

REAL = Path(__file__).parent / "fixtures" / "drawings"
NAMES = {
    "rocket": "Travel & Places",
    "red apple": "Food & Drink",
    "fox": "Animals & Nature",
    "hammer": "Objects",
    "kite": "Activities",
    "pot of food": "Food & Drink",
    "ice cube": "Food & Drink",
    "french fries": "Food & Drink",
    "grinning face": "Smileys & Emotion",
    "up sign": "Symbols",
    **{
        name: "Objects"
        for name in ("lamp", "key", "bell", "drum", "chair", "spoon", "ladder", "candle", "violin", "ring")
    },
}


def folder(path, side=96):
    """Write a folder of drawings, every name in both sets: coloured shapes, different for each."""
    pixels, entries = [], []
    for style in drawing_files.SETS:
        for name, group in NAMES.items():
            rng = random.Random(f"{name} {style}")
            image = Image.new("RGBA", (side, side))
            draw = ImageDraw.Draw(image)
            draw.ellipse((2, 2, side - 3, side - 3), fill=_colour(rng))
            for _ in range(3):
                points = [(rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.9) * side) for _ in range(3)]
                draw.polygon(points, fill=_colour(rng))
            pixels.append(np.asarray(image))
            entries.append({"name": name, "group": group, "set": style, "whole": drawing_files.is_whole(pixels[-1])})
    licences = [
        {"set": style, "work": work, "licence": licence, "source": package}
        for style, (package, work, licence) in drawing_files.SETS.items()
    ]
    path.mkdir(parents=True, exist_ok=True)
    save_file({"pixels": np.stack(pixels)}, path / drawing_files.PIXELS_FILE)
    listed = {"side": side, "licences": licences, "drawings": entries}
    (path / drawing_files.NAMES_FILE).write_text(json.dumps(listed), encoding="utf-8")
    return path


def real_folder(path):
    """Write a folder of the real drawings in fixtures/drawings, which scripts/drawings_fixture.py has cut out."""
    listed = json.loads((REAL / drawing_files.NAMES_FILE).read_text(encoding="utf-8"))
    sheet, side = np.asarray(Image.open(REAL / "drawings.png")), listed["side"]
    sets = list(dict.fromkeys(one["set"] for one in listed["drawings"]))
    names = list(dict.fromkeys(one["name"] for one in listed["drawings"]))
    places = [(names.index(one["name"]) * side, sets.index(one["set"]) * side) for one in listed["drawings"]]
    path.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([sheet[top : top + side, left : left + side] for top, left in places])
    save_file({"pixels": pixels}, path / drawing_files.PIXELS_FILE)
    (path / drawing_files.NAMES_FILE).write_text(json.dumps(listed), encoding="utf-8")
    return path


def packages(path, emoji):
    """npm packages of {character: (name, group)}: each a disc off the middle, with a hole in it in the shaded set."""
    listed = {character: {"name": name, "group": group} for character, (name, group) in emoji.items()}
    _write(path / "node_modules" / drawing_files.NAMES_PACKAGE / "data-by-emoji.json", listed)
    for style, (package, _, _) in drawing_files.SETS.items():
        icons, known = {}, {}
        for character, (name, _) in emoji.items():
            hole = '<circle cx="22" cy="20" r="4" fill="#ffffff"/>' if style == "shaded" else ""
            icons[name.replace(" ", "-")] = {"body": f'<circle cx="22" cy="20" r="8" fill="#dd2233"/>{hole}'}
            known["-".join(f"{ord(letter):x}" for letter in character)] = name.replace(" ", "-")
        home = path / "node_modules" / package
        _write(home / "icons.json", {"icons": icons, "width": 32, "height": 32})
        _write(home / "chars.json", known)
    return path


def _colour(rng):
    return tuple(rng.randrange(30, 230) for _ in range(3))


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
