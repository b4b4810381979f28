"""VGT Load LoRA and VGT Train LoRA in a real host."""

import re
import shutil
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vgt
from graphs import INTERN, TOKENIZER_ONLY, draw, install_models, load, node, run_latent, save_latent
from host import ROOT, HostError, Interrupted
from vgt.lora import base_of_generator
from vgt.networks.adapters import PARTS, Adapters
from vgt.run.flow import FlowSettings
from vgt.training import lora_command

TINY = "vgt-tiny.safetensors"
DRAWN = {"prompt": "a red crescent", "width": 112, "height": 112}
SETTINGS = {
    "steps": 4, "batch_size": 2, "accumulation": 1, "learning_rate": 0.002, "rank": 4, "alpha": 4.0,
    "train": "everything", "seed": 3, "existing_lora": "[None]", "keep": "a red circle\ntwo blue squares",
    "sample_prompt": "", "gradient_checkpointing": True,
}  # fmt: skip


def data(folder="vgt_crescent"):
    return {"data": node("LoadImageTextDataSetFromFolder", folder=folder)}


def trained(folder="vgt_crescent", model=TINY, **settings):
    """Loader, data set and VGT Train LoRA ("train")."""
    inputs = {"model": ["load", 0], "vae": ["load", 1], "images": ["data", 0], "texts": ["data", 1]}
    return {**load(model), **data(folder), "train": node("VGTTrainLoRA", **inputs, **SETTINGS | settings)}


def saved(graph, name="trained"):
    return {**graph, "save": node("SaveLoRA", lora=["train", 1], prefix=f"loras/{name}", steps=["train", 3])}


def with_lora(graph, *loras, **sampler):
    """The graph with VGT Load LoRA for each (file or node, strength), in a row, before its sampler."""
    source = "load"
    for index, (lora, strength) in enumerate(loras):
        inputs = {"lora_name": lora} if isinstance(lora, str) else {"lora_name": "[None]", "lora": lora}
        graph = {**graph, f"lora{index}": node("VGTLoadLoRA", model=[source, 0], strength=strength, **inputs)}
        source = f"lora{index}"
    drawn = draw(TINY, **DRAWN | sampler)
    drawn["draw"]["inputs"]["model"] = [source, 0]
    return {**graph, "flow": drawn["flow"], "draw": drawn["draw"]}


def random_lora(model, rank=4, seed=5):
    """A LoRA of a model that changes what it draws."""
    generator = model.generator
    adapters = Adapters(generator, tuple(PARTS), rank, float(rank), seed)
    rng = torch.Generator().manual_seed(seed)
    for adapter in adapters.adapters:
        adapter.up.data.normal_(std=0.05, generator=rng)
    base = base_of_generator(model.name, model.config.family, dict(generator.named_parameters()))
    return {**adapters.tensors(), "vgt.lora": base.tensor()}


@pytest.fixture(scope="module")
def tiny():
    return vgt.load(ROOT / "models" / TINY)


@pytest.fixture(scope="module")
def lora(host, tiny):
    """A LoRA file in the host's models/loras."""
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_lora(tiny), folder / "random.safetensors")
    return folder / "random.safetensors"


def python_latent(model, **changes):
    settings = {"height": 112, "width": 112, "seed": 1, "cfg": 3.0, "cfg_end": 1.0, "flow": FlowSettings(steps=2)}
    return model.generate([DRAWN["prompt"]], **settings | changes)


def test_patched_merged_and_plain_are_the_same(host, lora, tiny, tmp_path):
    patched = run_latent(host, with_lora(load(TINY), (lora.name, 0.8)))
    plain = python_latent(tiny.with_lora(lora, 0.8))
    assert not torch.allclose(plain, python_latent(tiny), atol=1e-2)
    torch.testing.assert_close(patched, plain, rtol=0, atol=1e-5)


def test_strength_0_is_the_model_itself_and_the_model_stays(host, lora):
    before = run_latent(host, with_lora(load(TINY)))
    assert torch.equal(run_latent(host, with_lora(load(TINY), (lora.name, 0.0))), before)
    one = run_latent(host, with_lora(load(TINY), (lora.name, 1.0)))
    assert not torch.equal(one, before)
    both = run_latent(host, with_lora(load(TINY), (lora.name, 1.0), (lora.name, -1.0)))
    torch.testing.assert_close(both, before, rtol=0, atol=1e-3)
    assert torch.equal(run_latent(host, with_lora(load(TINY), seed=1)), before)


def test_train_save_load_draw_in_one_run(host, tiny):
    """The whole way; then the saved file draws what the trained model did, and the base is as it was."""
    before = run_latent(host, with_lora(load(TINY), seed=2))
    graph = with_lora(saved(trained()), (["train", 1], 1.0), seed=2)
    through = run_latent(host, graph)
    files = sorted((host.base / "output" / "loras").glob("trained_4_steps_*.safetensors"))
    assert files
    tensors = load_file(files[-1])
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith("lora_up.weight"))
    again = run_latent(host, with_lora(load(TINY), (files[-1].name, 1.0), seed=2))
    assert torch.equal(again, through)
    assert not torch.equal(through, before)
    assert torch.equal(run_latent(host, with_lora(load(TINY), seed=2, cfg=3.0)), before)


def test_cli_and_node_give_the_same_tensors(host, tmp_path):
    host.run(saved(trained(seed=7), "parity"))
    node_file = sorted((host.base / "output" / "loras").glob("parity_4_steps_*.safetensors"))[-1]
    config = {
        "model": str(ROOT / "models" / TINY),
        "keep": SETTINGS["keep"].splitlines(),
        "data": {"kind": "folder", "path": str(ROOT / "pictures" / "crescent"), "size": 112},
        "lora": {"rank": 4, "alpha": 4.0},
        "training": {
            "steps": 4, "batch_size": 2, "learning_rate": 0.002, "warmup": 4, "weight_decay": 0.0, "seed": 7,
            "device": "cpu", "dtype": "float32",
        },
    }  # fmt: skip
    lora_command.run(config, tmp_path, None)
    ours, nodes = load_file(tmp_path / lora_command.FILE), load_file(node_file)
    assert ours.keys() == nodes.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(nodes[name], tensor, rtol=0, atol=1e-6, msg=name)


def sentence(host, graph):
    """What the log and the person read of a run that fails: one sentence."""
    with pytest.raises(HostError) as caught:
        host.run(graph if "save" in graph else save_latent(graph))
    assert caught.value.exception_type in ("ValueError", "FileNotFoundError", "vgt.LoraError", "vgt.TrainingError")
    return str(caught.value)


def test_bad_input_is_one_sentence_each(host, lora, tiny, tmp_path):
    install_models(host)
    folder = host.base / "models" / "loras"
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 8)}
    save_file(flux, folder / "flux.safetensors")
    (folder / "broken.safetensors").write_bytes(b"<html>404</html>")
    assert "flux.safetensors is a LoRA of Flux and fits no layer of vgt-tiny" in sentence(
        host, with_lora(load(TINY), ("flux.safetensors", 1.0))
    )
    assert "broken.safetensors cannot be read as a LoRA" in sentence(
        host, with_lora(load(TINY), ("broken.safetensors", 1.0))
    )
    other = with_lora(load(INTERN), (lora.name, 1.0))
    assert "is a LoRA of vgt-tiny.safetensors (qwen2_5_vl), not of internvl3.safetensors" in sentence(host, other)
    assert "tokenizer_only.safetensors is a tokenizer only" in sentence(host, saved(trained(model=TOKENIZER_ONLY)))


def test_pictures_without_captions_and_of_many_sizes(host):
    bare = host.base / "input" / "bare"
    shutil.copytree(ROOT / "pictures" / "crescent", bare, dirs_exist_ok=True)
    with Image.open(bare / "00.png") as picture:
        picture.resize((300, 150)).save(bare / "00.png")
        picture.resize((90, 90)).save(bare / "01.png")
    host.run(saved(trained("bare", batch_size=4, steps=2), "sizes"))
    assert "of 24 pictures 1 were made smaller" in host.log()
    silent = host.base / "input" / "silent"  # another folder: the host reads each once
    shutil.copytree(bare, silent, dirs_exist_ok=True)
    for name in ("02.txt", "03.txt"):
        (silent / name).unlink()
    assert "2 of the 24 pictures have no caption" in sentence(host, saved(trained("silent", seed=9)))


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(host):
    said = sentence(host, saved(trained(learning_rate=1.0, alpha=1000.0, steps=60, rank=1, seed=4)))
    assert re.search(r"The (loss|gradient) became (nan|inf) in step \d+", said), said


def test_cancel_leaves_what_was_learnt_to_go_on_from(host):
    """The host's own Cancel, in the middle of a run."""
    prompt = host.queue(saved(trained(steps=5000, seed=6)))

    def in_the_middle():
        if "VGT: training needs" in host.log().rpartition("got prompt")[2]:
            time.sleep(15)
            host.interrupt()

    with pytest.raises(Interrupted):
        host.wait(prompt, while_waiting=in_the_middle)
    (stopped,) = (host.base / "output" / "loras").glob("VGT_stopped_*_steps_*.safetensors")
    graph = saved(trained(steps=2, existing_lora=stopped.name), "went_on")
    host.run(graph)
    done = int(stopped.name.split("_")[2])
    assert list((host.base / "output" / "loras").glob(f"went_on_{done + 2}_steps_*.safetensors"))
