"""Draw docs/lora.png: the same prompts by the bundled model and with LoRAs, a row each.

python3 scripts/lora_sheet.py OUT.png LORA …
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "a pink crescent on white",
    "an orange crescent, cream background",
    "a purple crescent on navy",
    "a photo of a blue crescent on mint",
    "a red heart on white",
    "three yellow stars on navy",
    "a green circle to the left of a pink square",
    "a photo of a triangle",
)
"""Four that are new, none of them with the colours and backgrounds of a picture; four that the model knew."""


def main(out: str, *loras: str) -> None:
    import torch
    from torchvision.utils import save_image

    import vgt

    model = vgt.load(ROOT / "models" / "vgt-drawings.safetensors")
    rows = [model, *(model.with_lora(path) for path in loras)]
    pixels = [one.decode(one.generate(list(PROMPTS), seed=3)) for one in rows]
    save_image(((torch.cat(pixels) + 1) / 2).clamp(0, 1), out, nrow=len(PROMPTS), padding=4, pad_value=1)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:])
