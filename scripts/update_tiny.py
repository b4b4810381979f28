"""Give VGT-Tiny's file what was learnt about prompts after its training: a tokenizer that reads lower case and other
wordings, and the words its training knew; with --latent-rgb also a matrix for previews. The weights stay bit for bit:
`.venv/bin/python scripts/update_tiny.py SOURCE TARGET [--recommended FILE] [--latent-rgb]`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vgt
from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.latent_rgb import fit
from vgt.sampling import SamplingSettings
from vgt.scenes.wordings import WORDINGS, words
from vgt.scenes.world import ScenesDataset
from vgt.training.text import prompt_normaliser

# The templates were learnt with their capitals, so they keep them. They stand at the start of a turn, or of what
# follows a picture, where no prompt does.
TEMPLATES = (
    (r"\Auser\ngenerate an image(?=[:.])", "user\nGenerate an image"),
    (r"\Adescribe the image\.", "Describe the image."),
)


def scenes_matrix(source, count=300):
    """The latent-to-RGB matrix of a model for `count` scenes of the world that VGT-Tiny was trained on."""
    model, scenes = vgt.load(source), ScenesDataset(112, seed=5, length=count)
    pictures = (scenes[index][0][None] for index in range(len(scenes)))
    return fit((model.encode(pixels), pixels) for pixels in pictures)


def update(source, target, recommended=None, latent_rgb=None):
    """Write `target`; recommended: a SamplingSettings, latent_rgb: a matrix; None keeps what `source` has."""
    checkpoint = read_checkpoint(source)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    tokenizer.normalizer = prompt_normaliser((*TEMPLATES, *WORDINGS))
    checkpoint.tokenizer_json = tokenizer.to_str().encode("utf-8")
    checkpoint.vocabulary = words()
    if recommended is not None:
        checkpoint.recommended = recommended
    if latent_rgb is not None:
        checkpoint.latent_rgb = latent_rgb
    save_checkpoint(checkpoint, target)
    after = read_checkpoint(target).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def main():
    parser = argparse.ArgumentParser(description="Update what VGT-Tiny's file says of prompts; its weights stay.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--recommended", type=Path, help="a JSON file with the settings that the model recommends")
    parser.add_argument("--latent-rgb", action="store_true", help="fit the matrix for previews on 300 scenes")
    options = parser.parse_args()
    recommended = None
    if options.recommended:
        recommended = SamplingSettings.from_dict(json.loads(options.recommended.read_text(encoding="utf-8")))
    update(options.source, options.target, recommended, scenes_matrix(options.source) if options.latent_rgb else None)


if __name__ == "__main__":
    main()
