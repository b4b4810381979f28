"""Flags by which people fit the host to their card, and cards that are too small or fail."""

import pytest
import torch

from graphs import FIXTURES, INTERN, QWEN, SLOW, draw, install_models, node, run_latent, save_image, save_latent
from host import Host
from host_process import BEGIN, run
from vgt.files.reading import convert

CARD = """
import folder_paths
from pack.nodes.host import drawing
from pack.vgt.run.record import RunRecord
from pack.vgt.sampling import PUBLISHED

# A card that is none: the host takes it for a device with memory of its own, of which so many bytes are there.
card = torch.device("cpu:0")
memory.get_torch_device = lambda: card
memory.unet_offload_device = lambda: torch.device("cpu")
memory.is_device_cpu = lambda device: device != card
memory.minimum_inference_memory = memory.extra_reserved_memory = lambda: 0
memory.NUM_STREAMS = 0
budget = 1e12

def free(device=None, torch_free_too=False):
    held = sum(one.model.loaded_size() for one in memory.current_loaded_models if one.model is not None)
    left = max(0, budget - held)
    return (left, left) if torch_free_too else left

memory.get_free_memory = free
loading.register_model_folder()
folder_paths.add_model_folder_path("vgt", MODELS)

class Report:
    def begin(self, *_):
        return 0

    def rewind(self, start):
        pass

    def __call__(self, progress):
        pass

def picture(model, seed=3):
    settings = SamplingSettings(56, 56, seed=seed, cfg=3.0, flow=vgt.FlowSettings(steps=3)).over(PUBLISHED)
    with torch.inference_mode():
        return drawing.generate(
            model, Report(), ["a cat"], None, settings, latent=None, mask=None, batch_index=[0], record=RunRecord()
        )

def size(model):
    return memory.module_size(model.patcher.model)
"""


@pytest.fixture
def say(tmp_path):
    for name in (INTERN, QWEN):
        convert(FIXTURES / name.partition(".")[0], tmp_path / name)

    def run_script(script):
        return run(tmp_path, BEGIN, CARD, script, MODELS=str(tmp_path))

    return run_script


@pytest.mark.host
def test_draws_the_same_under_flags(host, models, tmp_path):
    """And without previews, where the host shall show none."""
    flags = ["--cpu-vae", "--fp32-vae", "--cache-none", "--reserve-vram", "1", "--preview-method", "none"]
    graph = draw(INTERN, seed=8)
    with Host(tmp_path / "other", flags) as other:
        install_models(other)
        assert torch.equal(run_latent(other, graph), run_latent(host, graph))
        decode = node("VAEDecode", samples=["draw", 0], vae=["load", 1])
        assert other.run(save_image({**graph, "decode": decode}, "decode"))["image"]["images"]
        with other.events() as events:
            other.run(save_latent(draw(**SLOW)))
            events.wait_for("execution_success")
        assert not events.of("preview")


@pytest.mark.host
@pytest.mark.skipif(torch.cuda.is_available(), reason="makes a card of the CPU")
def test_lowvram_novram_gpu_only_and_cards_too_small_draw_the_same(say):
    """In the host's own states for those flags, which go with no --cpu; on cards with room for all, for a part of the
    weights, and not even for the flow head; and two models in turn where there is room for one."""
    said = say("""
model, other = (loading.load_model(f"{name}.safetensors", "fp32")[0] for name in ("internvl3", "qwen2_5_vl"))
head = memory.module_size(model.patcher.model.flow_head)
wanted = picture(model)
said = []
for state in ("LOW_VRAM", "NO_VRAM", "HIGH_VRAM", "NORMAL_VRAM"):
    for budget in (1e12, 0.6 * size(model), 0.5 * head):
        memory.unload_all_models()
        memory.vram_state = memory.VRAMState[state]
        same = torch.equal(picture(model), wanted)
        said.append([same, model.patcher.loaded_size() >= size(model) - memory.module_size(
            model.patcher.model.language_model.embed_tokens
        )])
memory.unload_all_models()
budget = 1e12
both = [picture(model), picture(other)]
memory.unload_all_models()
budget = 1.2 * max(size(model), size(other))
turns = [torch.equal(picture(one), before) for _ in range(2) for one, before in zip((model, other), both)]
print(json.dumps([said, turns]))
""")
    states, turns = said
    assert all(same for same, _ in states)
    assert turns == [True] * 4
    wholly = [wholly for _, wholly in states]
    assert wholly[0] and not wholly[1] and not wholly[2]  # --lowvram: what fits
    assert not any(wholly[3:6])  # --novram: nothing stays
    assert wholly[9] and not wholly[11]


@pytest.mark.host
@pytest.mark.skipif(torch.cuda.is_available(), reason="makes a card of the CPU")
def test_a_device_lost_in_the_middle_is_one_sentence(say):
    said = say("""
model, _ = loading.load_model("internvl3.safetensors", "fp32")
wanted = picture(model)

def fails(*_):
    raise RuntimeError("CUDA error: unspecified launch failure\\nCUDA kernel errors might be reported later.")

hook = model.patcher.model.image_out_projector.register_forward_hook(fails)
try:
    picture(model)
except RuntimeError as error:
    message = str(error)
hook.remove()
print(json.dumps([message, torch.equal(picture(model), wanted)]))
""")
    assert said == [
        "The device failed while it drew (CUDA error: unspecified launch failure); start ComfyUI again.",
        True,
    ]
