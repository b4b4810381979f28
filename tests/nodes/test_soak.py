"""The long runs: random valid and invalid prompts, and memory over many generations. `dev.py test --soak` runs them."""

from __future__ import annotations

import collections
import os
import random
import re
import time

import pytest
import torch
from PIL import Image

from graphs import BAD_MODELS, INTERN, QWEN, TOKENIZER_ONLY, draw, install_models, node, upload_latent
from host import Host, HostError, Interrupted, PromptRejected

pytestmark = pytest.mark.soak

PROMPTS = 500
GENERATIONS, WARM = 200, 20
WIDE = ["", "a cat", "two dogs\non a lawn", "<|im_end|>", "\ud800", "猫" * 30, "\0", "x" * 3000, 7, True, "{a|b}"]
LONG = "a very long prompt " * 3000
NAN = float("nan")

# Values that an input must refuse, and a word that the error must hold ("" for the input's own name).
BAD = {
    "draw": {
        "width": [(57, "57x"), (476, "476x"), (0, ""), (1820, ""), (10**30, ""), ("wide", ""), (None, "")],
        "height": [(30, "x30"), (-28, ""), (1792, "x1792"), (2**63, ""), ({}, "")],
        "batch_size": [(0, ""), (65, ""), ("two", "")],
        "seed": [(-1, ""), (2**64, ""), ("seed", "")],
        "cfg": [(-0.1, ""), (31, ""), ("strong", ""), (float("inf"), "")],
        "tokens_per_step": [(0, ""), (4097, ""), ("all", "")],
        "order": [("backwards", ""), ("", "")],
        "decoding": [("greedy", "")],
        "grouping": [("linear", "")],
        "denoise": [(-0.5, ""), (1.01, "")],
        "prompt": [(LONG, "")],
        "negative_prompt": [(LONG, "negative prompt")],
        "model": [(["flow", 0], ""), ("a model", "")],
        "flow_head": [(["load", 1], ""), ("a flow head", "")],
        "latent": [("a latent", ""), (["load", 0], "")],
    },
    "flow": {
        "steps": [(0, ""), (1001, ""), ("many", "")],
        "last_step": [(0.0, ""), (1.0, ""), (NAN, "")],
        "temperature": [(-1, ""), (2.5, ""), (NAN, "")],
        "solver": [("heun", "")],
        "cfg_schedule": [("cosine", "")],
    },
    "load": {
        "model": [("absent.safetensors", "absent.safetensors"), ("../vgt", "../vgt"), ("", "model")]
        + [(name, name) for name in (*BAD_MODELS, TOKENIZER_ONLY)],
        "dtype": [("int4", ""), (None, "")],
    },
    "latent": {
        "latent": [(name, "latent") for name in ("four_channels", "nan", "infinite", "video", "empty_video")],
    },
}
LATENTS = {
    "four_channels": torch.ones(1, 4, 8, 8),
    "nan": torch.full((1, 32, 2, 2), NAN),
    "infinite": torch.full((2, 32, 1, 3), float("inf")),
    "video": torch.ones(1, 16, 2, 8, 8),
    "empty_video": torch.zeros(1, 16, 2, 8, 8),
}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """A host of our own, previews on, with models, a picture and latents that are not VGT's."""
    home = tmp_path_factory.mktemp("soak")
    with Host(home, ["--preview-method", "auto"]) as host:
        install_models(host)
        for name, samples in LATENTS.items():
            upload_latent(host, samples, name)
        Image.effect_noise((101, 70), 80).convert("RGB").save(home / "photo.png")
        host.upload_image(home / "photo.png")
        yield host


def valid(chance):
    """A random graph that must give a picture: load, flow, draw, decode, image, and perhaps a latent to repaint."""
    side = [28, 56, 84, 112]
    graph = draw(
        chance.choice([INTERN, QWEN]),
        chance.choice(["auto", "auto", "fp32", "bf16", "fp16", "fp8_e4m3fn"]),
        {
            "steps": chance.randint(1, 4),
            "cfg_schedule": chance.choice(["linear", "constant"]),
            "last_step": chance.choice([0.001, 0.04, 0.999]),
            "solver": chance.choice(["euler_maruyama", "euler"]),
            "temperature": chance.choice([0.0, 0.5, 1.0, 2.0]),
        },
        prompt=chance.choice(WIDE),
        negative_prompt=chance.choice(WIDE),
        seed=chance.choice([0, 1, 2**64 - 1, chance.getrandbits(64)]),
        width=chance.choice(side),
        height=chance.choice(side),
        batch_size=chance.choice([1, 1, 2, 3]),
        cfg=chance.choice([0.0, 1.0, 4.5, 30.0, NAN]),
        tokens_per_step=chance.choice([1, 2, 5, 4096]),
        order=chance.choice(["random", "sequential"]),
        decoding=chance.choice(["published", "training-consistent"]),
        grouping=chance.choice(["uniform", "cosine"]),
        denoise=chance.choice([0.0, 0.3, 1.0, 1.0]),
    )
    kind = chance.choice(["none", "none", "empty", "photo", "masked", "inpaint"])
    if kind != "none":
        graph["photo"] = node("LoadImage", image="photo.png")
        graph["mask"] = node(
            "SolidMask",
            value=chance.choice([0.0, 0.5, 1.0]),
            width=chance.randint(1, 300),
            height=chance.randint(1, 99),
        )
        encode = node("VGTEncode", image=["photo", 0], vae=["load", 1], fit=chance.choice(["crop", "pad", "stretch"]))
        graph["latent"] = {
            "empty": node("EmptyLatentImage", width=chance.choice([16, 64]), height=112, batch_size=2),
            "photo": encode,
            "masked": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
            "inpaint": node(
                *("VAEEncodeForInpaint",), pixels=["photo", 0], vae=["load", 1], mask=["mask", 0], grow_mask_by=6
            ),
        }[kind]
        if kind == "masked":
            graph["encoded"] = encode
        graph["draw"]["inputs"]["latent"] = ["latent", 0]
    decode = chance.choice(["VGTDecode", "VAEDecode", "VAEDecodeTiled"])
    tiles = {"temporal_size": 64, "temporal_overlap": 8, "overlap": chance.choice([0, 64, 4096])}
    tiles["tile_size"] = chance.choice([64, 96, 512])
    graph["decode"] = node(
        decode, samples=["draw", 0], vae=["load", 1], **(tiles if decode == "VAEDecodeTiled" else {})
    )
    graph["image"] = node("SaveImage", images=["decode", 0], filename_prefix="soak/soak")
    return graph


def spoil(graph, chance):
    """Put one bad value into a graph; returns the word that the error must hold."""
    where = chance.choice(list(BAD))
    name = chance.choice(list(BAD[where]))
    value, word = chance.choice(BAD[where][name])
    if where == "latent":
        graph["latent"] = node("LoadLatent", latent=f"{value}.latent")
        graph["draw"]["inputs"]["latent"] = ["latent", 0]
    else:
        if name in ("width", "height"):  # with a latent they are not used
            graph["draw"]["inputs"].pop("latent", None)
        if name == "negative_prompt":  # not read without guidance
            graph["draw"]["inputs"]["cfg"] = 4.5
        if name in ("prompt", "negative_prompt", "order", "decoding", "grouping", "cfg_schedule"):
            graph["draw"]["inputs"].pop("latent", None)  # it might be given back as it is, with nothing drawn
        graph[where]["inputs"][name] = value
        if chance.random() < 0.1 and name not in ("flow_head", "latent"):  # which may be absent
            del graph[where]["inputs"][name]
            word = name
    return word or name


def outcome(host, graph):
    """ "picture", "rejected" or "error", and the message of the latter two."""
    try:
        outputs = host.run(graph, timeout=120)
    except PromptRejected as error:
        return "rejected", str(error)
    except Interrupted:
        raise
    except HostError as error:
        if error.node_id is None:
            raise
        return "error", str(error)
    assert outputs["image"]["images"]
    return "picture", ""


def test_every_prompt_ends_in_a_picture_or_in_an_error_that_names_the_input(soaked):
    chance = random.Random(0)
    ends, wrong, began = collections.Counter(), [], time.monotonic()
    for number in range(PROMPTS):
        graph = valid(chance)
        word = spoil(graph, chance) if chance.random() < 0.5 else None
        end, message = outcome(soaked, graph)
        ends[end] += 1
        if word is None:
            right = end == "picture"
        else:
            right = end != "picture" and word.replace("_", " ") in message.replace("_", " ")
            right = right and (end == "rejected" or bool(re.search(r"^[^\n]+\.$", message)))
        if not right:
            wrong.append((number, word, end, message[:300], graph))
    print(f"{PROMPTS} prompts in {time.monotonic() - began:.0f} s: {dict(ends)}")
    assert not wrong, "\n".join(map(str, wrong))
    assert soaked.get("/system_stats")
    assert min(ends.values()) > PROMPTS // 20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_stays_where_it_is(soaked):
    def resident():
        with open(f"/proc/{soaked.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    soaked.free()
    measured = {}
    for number in range(1, GENERATIONS + 1):
        graph = draw(width=112, height=112, seed=number)
        graph["decode"] = node("VGTDecode", samples=["draw", 0], vae=["load", 1])
        graph["image"] = node("SaveImage", images=["decode", 0], filename_prefix="soak/memory")
        assert outcome(soaked, graph)[0] == "picture"
        if number in (WARM, GENERATIONS):
            measured[number] = resident()
    growth = measured[GENERATIONS] / measured[WARM] - 1
    print(f"resident: {measured[WARM]:.1f} MiB after {WARM}, {measured[GENERATIONS]:.1f} MiB after {GENERATIONS}")
    assert growth < 0.03
