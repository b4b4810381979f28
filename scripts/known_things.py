"""Draw web/docs/VGTLoader/known.jpg: 48 prompts that the bundled model knows, each below its picture.

.venv/bin/python scripts/known_things.py [OUT.jpg]
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "vgt-drawings.safetensors"
OUT = ROOT / "web" / "docs" / "VGTLoader" / "known.jpg"
PROMPTS = (
    "a fox", "a penguin", "an elephant", "an octopus", "a butterfly", "a snail", "a frog", "a cat face",
    "a rose", "a cactus", "a mushroom", "a palm tree", "a sunflower", "a maple leaf", "a strawberry", "a red apple",
    "a pineapple", "a carrot", "a banana", "cherries", "a hamburger", "a pizza", "a doughnut", "an ice cream",
    "a rocket", "a bus", "a bicycle", "a sailboat", "a castle", "a snow-capped mountain", "a helicopter", "a train",
    "a guitar", "a key", "a light bulb", "a crown", "a hammer", "an umbrella", "a teddy bear", "a trophy",
    "a smiling face with sunglasses", "an astronaut", "a fox on a mint background", "a shaded drawing of a penguin",
    "three strawberries", "two balloons on sky blue", "a rocket to the left of a castle",
    "a red circle above a blue square",
)  # fmt: skip
COLUMNS, SIDE, TEXT, GAP = 8, 112, 26, 6
SEED = 7


def wrapped(text, font, width):
    """Lines of a text that are as wide as a picture at most."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    return "\n".join(line for line in lines if line)


def main(out: Path) -> None:
    import vgt

    pictures = vgt.load(MODEL).draw(list(PROMPTS), seed=SEED)
    rows, font = -(-len(pictures) // COLUMNS), ImageFont.load_default(11)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), "white")
    write = ImageDraw.Draw(sheet)
    for index, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        left = GAP + index % COLUMNS * (SIDE + GAP)
        top = GAP + index // COLUMNS * (SIDE + TEXT + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        write.multiline_text((left, top + SIDE), wrapped(prompt, font, SIDE), "black", font, spacing=0)
    sheet.save(out, quality=90, optimize=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
