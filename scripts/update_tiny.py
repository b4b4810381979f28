"""Give VGT-Tiny's file what was learnt about prompts after its training: a tokenizer that reads lower case and other
wordings, and the words its training knew. The weights stay bit for bit: `.venv/bin/python scripts/update_tiny.py SOURCE
TARGET [--recommended FILE]`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.sampling import SamplingSettings
from vgt.scenes.wordings import WORDINGS, words
from vgt.training.text import prompt_normaliser

# The templates were learnt with their capitals, so they keep them. They stand at the start of a turn, or of what
# follows a picture, where no prompt does.
TEMPLATES = (
    (r"\Auser\ngenerate an image(?=[:.])", "user\nGenerate an image"),
    (r"\Adescribe the image\.", "Describe the image."),
)


def update(source, target, recommended=None):
    """Write `target`; recommended: a SamplingSettings, None keeps what `source` recommends."""
    checkpoint = read_checkpoint(source)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    tokenizer.normalizer = prompt_normaliser((*TEMPLATES, *WORDINGS))
    checkpoint.tokenizer_json = tokenizer.to_str().encode("utf-8")
    checkpoint.vocabulary = words()
    if recommended is not None:
        checkpoint.recommended = recommended
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
    options = parser.parse_args()
    recommended = None
    if options.recommended:
        recommended = SamplingSettings.from_dict(json.loads(options.recommended.read_text(encoding="utf-8")))
    update(options.source, options.target, recommended)


if __name__ == "__main__":
    main()
