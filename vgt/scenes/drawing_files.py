"""The folder of drawings: emoji of two free sets, rendered once, with their names and licences.

drawings.safetensors: "pixels" uint8 [N, SIDE, SIDE, 4], RGBA, each drawing filling its square in one direction.
drawings.json: {"side", "drawings": [{"name", "group", "set", "whole"}], "licences": [...]}, row by row.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from .world import COLOURS, SHAPES

SIDE = 192
"""Pixels of a rendered drawing's side."""
PIXELS_FILE, NAMES_FILE = "drawings.safetensors", "drawings.json"

SETS = {
    "flat": ("@iconify-json/fluent-emoji-flat", "Fluent Emoji (flat), Copyright (c) Microsoft Corporation", "MIT"),
    "shaded": ("@iconify-json/noto", "Noto Emoji, Copyright Google LLC", "Apache-2.0"),
}
"""Name of a set → npm package, work and holder, licence (SPDX). The licences' texts are in licenses/."""
NAMES_PACKAGE = "unicode-emoji-json"
PACKAGES = (*(package for package, _, _ in SETS.values()), NAMES_PACKAGE)

_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
)  # and not Flags
# Pictures of text, variants of another drawing that differ in little, and what nobody should be shown unasked.
_LEFT_OUT = re.compile(
    r"facing right|-thirty|button|keycap|input |japanese symbol|^(family|kiss|couple with heart) .*,|^family "
    r"|(medium|small|large)(-small)? square|diamond|triangle pointed|middle finger| arrow$|^circled m$"
    r"|hollow red circle|trade mark|registered|copyright|information|^cinema$",
    re.IGNORECASE,
)
_GENDERED = re.compile(r"^(man|woman|men|women) ")


def build(packages: str | Path, out: str | Path) -> int:
    """Render all drawings from a folder that holds the npm packages; returns how many there are.

    packages: the folder npm installed into, with or without its node_modules.
    Raises ValueError in one sentence when a package or the renderer is missing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ValueError("Rendering the drawings needs resvg-py; pip install -r requirements-train.txt.") from error
    from safetensors.numpy import save_file

    names = _names(packages)
    pixels, entries = [], []
    for name_of_set, (package, _, _) in SETS.items():
        icons = _read(packages, package, "icons.json")
        known = _read(packages, package, "chars.json")
        for emoji, entry in names.items():
            icon = known.get(_code(emoji)) or known.get(_code(emoji.replace("\ufe0f", "")))
            if icon is None:
                continue
            rendered = _fit(resvg_py.svg_to_bytes(svg_string=_svg(icons, icon), width=2 * SIDE, height=2 * SIDE))
            pixels.append(rendered)
            entries.append({**entry, "set": name_of_set, "whole": is_whole(rendered)})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file({"pixels": np.stack(pixels)}, out / PIXELS_FILE)
    licences = [
        {"set": key, "work": work, "licence": licence, "source": package}
        for key, (package, work, licence) in SETS.items()
    ]
    text = json.dumps({"side": SIDE, "licences": licences, "drawings": entries}, ensure_ascii=False, indent=1)
    (out / NAMES_FILE).write_text(text + "\n", encoding="utf-8")
    return len(entries)


def is_whole(pixels: np.ndarray) -> bool:
    """Whether a drawing, uint8 [H, W, 4], has no part that lies further from the rest than two drawings do."""
    from scipy import ndimage

    from .drawings import NEAREST

    height = pixels.shape[0]
    near = max(1, round(NEAREST / 2 / 0.4 * height / 2))  # as many pixels of the drawing at its size in a pair
    mask = ndimage.binary_dilation(pixels[..., 3] > 96, np.ones((3, 3)), iterations=near)
    return ndimage.label(mask, np.ones((3, 3)))[1] == 1


def _names(packages) -> dict[str, dict]:
    """Emoji → {"name", "group"} of all that is drawn."""
    listed = _read(packages, NAMES_PACKAGE, "data-by-emoji.json")
    every = {entry["name"] for entry in listed.values()}
    chosen = {}
    for emoji, entry in listed.items():
        name = plain(entry["name"])
        if entry["group"] not in _GROUPS or _LEFT_OUT.search(name) or _is_shape(name):
            continue
        neutral = [_GENDERED.sub(word, entry["name"]) for word in ("person ", "people ", "")]
        if _GENDERED.match(entry["name"]) and any(other in every for other in neutral):
            continue
        chosen[emoji] = {"name": name, "group": entry["group"]}
    return chosen


def plain(name: str) -> str:
    """A name in lower case and without accents and typographic quotes."""
    name = unicodedata.normalize("NFKD", name.replace("’", "'").replace("“", '"').replace("”", '"'))
    return "".join(letter for letter in name if not unicodedata.combining(letter)).lower()


def _is_shape(name: str) -> bool:
    """The generated world's own: a shape, alone or with its colour."""
    words = name.split()
    return words[-1] in SHAPES and all(word in (*COLOURS, "white", "black", "grey", "light") for word in words[:-1])


def _read(packages, package: str, file: str):
    for folder in (Path(packages) / "node_modules" / package, Path(packages) / package):
        if (folder / file).is_file():
            return json.loads((folder / file).read_text(encoding="utf-8"))
    raise ValueError(
        f"{packages} lacks {package}/{file}; npm install --ignore-scripts --prefix {packages} {' '.join(PACKAGES)}."
    )


def _code(emoji: str) -> str:
    return "-".join(f"{ord(letter):x}" for letter in emoji)


def _svg(icons: dict, name: str) -> str:
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"][alias["parent"] if alias else name]
    width, height = (icon.get(side, icons.get(side)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    box = f"{left} {top} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def _fit(png: bytes) -> np.ndarray:
    """A rendered drawing, cropped to the smallest square about it: uint8 [SIDE, SIDE, 4]."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    left, top, right, bottom = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    margin = image.width  # the square may reach beyond the picture
    wide = Image.new("RGBA", (3 * margin, 3 * margin))
    wide.paste(image, (margin, margin))
    box = (x - half + margin, y - half + margin, x + half + margin, y + half + margin)
    return np.asarray(wide.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))
