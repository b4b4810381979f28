"""The numbers recorded from the published implementation (fixtures/README.md)."""

import json
from pathlib import Path

from safetensors.torch import load_file

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = ("internvl3", "qwen2_5_vl")
TOLERANCE = 1e-4


def cases():
    """(family, case) of every recorded generation."""
    for family in FAMILIES:
        for case in json.loads((FIXTURES / family / "generate_cases.json").read_text()):
            yield family, case


def tensors(family, case):
    """What was recorded of a case: noise, latents, image, input_ids, conditions …"""
    return load_file(FIXTURES / family / case["file"])


def settings(case):
    """The arguments of Model.generate for a case, but for the noise."""
    import vgt

    return {
        "prompts": case["prompts"],
        "negative": case.get("negative"),
        "height": case["height"],
        "width": case["width"],
        "cfg": case["cfg"],
        "cfg_schedule": case["cfg_schedule"],
        "tokens_per_step": case["parallel"],
        "order": case["order"],
        "order_seed": case["order_seed"],
        "flow": vgt.FlowSettings(steps=case["steps"]),
    }
