"""The pack as a guest: what it does where the host's memory, flags or file names are not what it would like."""

from __future__ import annotations

import pytest
import torch

from graphs import FIXTURES, INTERN
from host_process import BEGIN, run
from vgt.files.reading import convert

pytestmark = [pytest.mark.host, pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")]

LOADED = (
    BEGIN
    + """
import folder_paths, os
from pack.nodes.host import progress, vae as vaes
loading.register_model_folder()
folder_paths.add_model_folder_path("vgt", MODELS)
model, vae = loading.load_model("internvl3.safetensors", "fp32")
"""
)


@pytest.fixture
def say(tmp_path):
    """Runs a script that finds `model` and `vae`; returns what it prints last."""
    convert(FIXTURES / "internvl3", tmp_path / INTERN)

    def run_script(script):
        return run(tmp_path, LOADED, script, MODELS=str(tmp_path))

    return run_script


def test_a_preview_that_fails_is_the_last(say):
    said = say("""
tried = []
def fails(*_):
    tried.append(1)
    raise RuntimeError("no room for a picture\\nand more")

model.vae.first_stage_model.decode = fails
report = progress.ProgressReport(model, 4)
report.begin((2, 2), 0)
report._preview_is_due = lambda: report._previews
settings = SamplingSettings(56, 56, seed=3, cfg=3.0, flow=vgt.FlowSettings(steps=3))
memory.load_models_gpu([model.patcher])
latent = generate(model.patcher.model, model.tokenizer, "a cat", settings=settings, progress=report)
print(json.dumps([len(tried), list(latent.shape), report._done]))
""")
    assert said == [1, [1, 32, 2, 2], 4]


def test_without_the_vae_previews_show_each_tokens_colour(say):
    """Where it fails, is slow or has no room, and the model file holds a matrix."""
    said = say("""
decodes = []
def decode(latent):
    decodes.append(1)
    raise RuntimeError("no room for a picture")

def shown(slow=None, room=True):
    report = progress.ProgressReport(model, 4)
    if slow is not None:
        report.SLOW = slow
    model.vae.make_ready = lambda *_: room
    pictures = []
    report._bar.update_absolute = lambda done, preview=None: pictures.append(preview and list(preview[1].size))
    report._preview_is_due = lambda: report._previews
    report.begin((2, 2), 0)
    settings = SamplingSettings(56, 56, seed=3, cfg=3.0, flow=vgt.FlowSettings(steps=3))
    generate(model.patcher.model, model.tokenizer, "a cat", settings=settings, progress=report)
    return pictures

model.latent_rgb = ((0.1, 0.2, 0.3),) * 33
memory.load_models_gpu([model.patcher, vae.patcher])
whole = vae.first_stage_model.decode
vae.first_stage_model.decode = lambda latent: (decodes.append(1), whole(latent))[1]
found = [(shown(slow=60), len(decodes)), (shown(slow=0), len(decodes)), (shown(room=False), len(decodes))]
vae.first_stage_model.decode = decode
print(json.dumps([*found, (shown(), len(decodes))]))
""")
    pictures = [[56, 56]] * 4
    assert said == [[pictures, 4], [pictures, 5], [pictures, 5], [pictures, 6]]


def test_the_host_says_what_the_vae_computes_in(say):
    """Of its own accord, and by a flag whatever the Loader says; else a chosen dtype is what was chosen."""
    said = say("""
said = [str(vaes.vae_dtype(None, torch.bfloat16)), str(vaes.vae_dtype(torch.bfloat16, torch.bfloat16))]
vaes.args.fp32_vae = True
said.append(str(loading.load_model("internvl3.safetensors", "bf16")[1].vae_dtype))
print(json.dumps(said))
""")
    assert said == ["torch.float32", "torch.bfloat16", "torch.float32"]


def test_latents_of_tiles_are_normalised(say):
    said = say("""
pixels = torch.rand(1, 168, 252, 3, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    latent = vae.encode_tiled(pixels, tile_x=112, tile_y=112, overlap=56)
print(json.dumps([latent.mean(1).abs().max().item(), latent.var(1, unbiased=False).sub(1).abs().max().item()]))
""")
    assert said[0] < 1e-5
    assert said[1] < 1e-3


def test_a_file_of_a_folder_is_found_by_its_windows_name(say):
    said = say("""
os.mkdir(MODELS + "/mine")
os.rename(MODELS + "/internvl3.safetensors", MODELS + "/mine/one.safetensors")
print(json.dumps(loading.load_model("mine\\\\one.safetensors", "fp32")[0].name))
""")
    assert said == "mine/one.safetensors"


def test_what_the_host_may_ask_of_a_model(say):
    said = say("""
make, arguments = vae.patcher.cached_patcher_init
again, plain = make(*arguments), make(*arguments, disable_dynamic=True)
parts = [part.numel() * part.element_size() for part in model.patcher.model.parameters()]
table = model.patcher.model.language_model.embed_tokens.weight
print(json.dumps([
    type(again.model).__name__, again.model is not vae.first_stage_model,
    type(plain) is comfy.model_patcher.ModelPatcher,
    model.get_ram_usage() - sum(parts) - table.numel() * table.element_size(),
]))
""")
    assert said == ["Autoencoder", True, True, 0]
