"""VGT Load LoRA and VGT Train LoRA in a real host."""

import copy
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vgt
from bundled import NAME, PATH
from graphs import INTERN, TOKENIZER_ONLY, draw, install_models, load, node, run_latent, save_latent
from host import ROOT, HostError, Interrupted
from host_process import BEGIN
from host_process import run as run_script
from vgt.__main__ import main
from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.lora import base_of_generator
from vgt.networks.adapters import PARTS, Adapters
from vgt.run.flow import FlowSettings
from vgt.training import lora_command
from vgt.training.command import read_config, read_table
from vgt.training.lora import LoraSettings

DRAWN = {"prompt": "a red crescent", "width": 224, "height": 224}
SETTINGS = {
    "steps": 4, "batch_size": 2, "accumulation": 1, "learning_rate": 0.002, "rank": 4, "alpha": 4.0,
    "train": "everything", "seed": 3, "existing_lora": "[None]", "keep": "a red circle\ntwo blue squares",
    "sample_prompt": "", "gradient_checkpointing": True,
}  # fmt: skip


def data(folder="vgt_crescent"):
    return {"data": node("LoadImageTextDataSetFromFolder", folder=folder)}


def trained(folder="vgt_crescent", model=NAME, **settings):
    """Loader, data set and VGT Train LoRA ("train")."""
    inputs = {"model": ["load", 0], "vae": ["load", 1], "images": ["data", 0], "texts": ["data", 1]}
    return {**load(model), **data(folder), "train": node("VGTTrainLoRA", **inputs, **SETTINGS | settings)}


def saved(graph, name="trained"):
    return {**graph, "save": node("SaveLoRA", lora=["train", 1], prefix=f"loras/{name}", steps=["train", 3])}


def with_lora(graph, *loras, model=NAME, **sampler):
    """The graph with VGT Load LoRA for each (file or node, strength), in a row, before its sampler."""
    source = "load"
    for index, (lora, strength) in enumerate(loras):
        inputs = {"lora_name": lora} if isinstance(lora, str) else {"lora_name": "[None]", "lora": lora}
        graph = {**graph, f"lora{index}": node("VGTLoadLoRA", model=[source, 0], strength=strength, **inputs)}
        source = f"lora{index}"
    drawn = draw(model, **DRAWN | sampler)
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
def model():
    return vgt.load(PATH)


@pytest.fixture(scope="module")
def lora(host, model):
    """A LoRA file in the host's models/loras."""
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_lora(model), folder / "random.safetensors")
    return folder / "random.safetensors"


def python_latent(model, **changes):
    settings = {"height": 224, "width": 224, "seed": 1, "cfg": 3.0, "cfg_end": 1.0, "flow": FlowSettings(steps=2)}
    return model.generate([DRAWN["prompt"]], **settings | changes)


@pytest.fixture(scope="module")
def intern(host):
    return vgt.load(install_models(host) / INTERN)


def test_patched_merged_and_plain_are_the_same(host, tmp_path):
    """In float32: what is merged is written in the model's own precision."""
    path = install_models(host) / "float32.safetensors"
    checkpoint = read_checkpoint(path.with_name(INTERN))
    whole = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in checkpoint.tensors.items()
    }
    save_checkpoint(replace(checkpoint, tensors=whole), path)
    model, file = vgt.load(path), host.base / "models" / "loras" / "float32.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_lora(model), file)
    patched = run_latent(host, with_lora(load(path.name), (file.name, 0.8), model=path.name))
    plain = python_latent(model.with_lora(file, 0.8))
    assert not torch.allclose(plain, python_latent(model), atol=1e-2)
    merged = tmp_path / "merged.safetensors"
    assert main(["merge", str(path), f"{file}:0.8", str(merged)]) == 0
    torch.testing.assert_close(patched, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(python_latent(vgt.load(merged)), plain, rtol=0, atol=1e-5)


def loha(weight, rng):
    """The tensors of a LoHa (arXiv 2108.06098) of rank 2, alpha 1, and the weight that it makes."""
    first, second = (
        (torch.randn(len(weight), 2, generator=rng), torch.randn(2, weight.shape[1], generator=rng)) for _ in range(2)
    )
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = dict(zip(names, (*first, *second))) | {"alpha": torch.tensor(1.0)}
    return tensors, weight + 0.5 * (first[0] @ first[1]) * (second[0] @ second[1])


def lokr(weight, rng):
    """The same of a LoKr: a Kronecker product."""
    small = torch.randn(2, 2, generator=rng)
    large = torch.randn(len(weight) // 2, weight.shape[1] // 2, generator=rng)
    return {"lokr_w1": small, "lokr_w2": large}, weight + torch.kron(small, large)


def dora(weight, rng):
    """The same of a DoRA (arXiv 2402.09353), rank 2: directions learn as a LoRA, the columns' lengths by themselves."""
    up, down = torch.randn(len(weight), 2, generator=rng), torch.randn(2, weight.shape[1], generator=rng)
    length = 0.5 + torch.rand(1, weight.shape[1], generator=rng)
    turned = weight + up @ down
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0), "dora_scale": length}
    return tensors, length * turned / turned.norm(dim=0, keepdim=True)


@pytest.mark.parametrize("kind", (loha, lokr, dora))
def test_other_kinds_load_as_they_are_defined(host, intern, kind):
    name = next(own for own, _ in intern.generator.named_parameters() if own.endswith("o_proj.weight"))
    changed, layer = copy.copy(intern), name.removesuffix(".weight")
    changed.generator = copy.deepcopy(intern.generator)
    tensors, weight = kind(intern.generator.get_parameter(name).detach(), torch.Generator().manual_seed(1))
    changed.generator.get_parameter(name).data.copy_(weight)
    file = host.base / "models" / "loras" / f"{kind.__name__}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"generator.{layer}.{key}": tensor.contiguous() for key, tensor in tensors.items()}, file)
    wanted = python_latent(changed)
    assert not torch.allclose(wanted, python_latent(intern), atol=1e-2)
    patched = run_latent(host, with_lora(load(INTERN), (file.name, 1.0), model=INTERN))
    torch.testing.assert_close(patched, wanted, rtol=0, atol=1e-5)


def test_strength_0_is_the_model_itself_and_the_model_stays(host, lora):
    before = run_latent(host, with_lora(load(NAME)))
    assert torch.equal(run_latent(host, with_lora(load(NAME), (lora.name, 0.0))), before)
    one = run_latent(host, with_lora(load(NAME), (lora.name, 1.0)))
    assert not torch.equal(one, before)
    both = run_latent(host, with_lora(load(NAME), (lora.name, 1.0), (lora.name, -1.0)))
    torch.testing.assert_close(both, before, rtol=0, atol=1e-3)
    assert torch.equal(run_latent(host, with_lora(load(NAME), seed=1)), before)


def test_train_save_load_draw_in_one_run(host, model):
    """The whole way; then the saved file draws what the trained model did, and the base is as it was."""
    before = run_latent(host, with_lora(load(NAME), seed=2))
    graph = with_lora(saved(trained()), (["train", 1], 1.0), seed=2)
    through = run_latent(host, graph)
    files = sorted((host.base / "output" / "loras").glob("trained_4_steps_*.safetensors"))
    assert files
    tensors = load_file(files[-1])
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith("lora_up.weight"))
    again = run_latent(host, with_lora(load(NAME), (files[-1].name, 1.0), seed=2))
    assert torch.equal(again, through)
    assert not torch.equal(through, before)
    assert torch.equal(run_latent(host, with_lora(load(NAME), seed=2, cfg=3.0)), before)


def test_defaults_are_those_of_the_command_line(host):
    """The node, the configurations, the template: what docs/lora.md measured holds for all of them."""
    inputs = host.get("/object_info/VGTTrainLoRA")["VGTTrainLoRA"]["input"]
    node_defaults = {name: about[1].get("default") for kind in inputs.values() for name, about in kind.items()}
    config = read_config(ROOT / "vgt" / "training" / "configs" / "drawings-lora-crescent.toml")
    lora, training = read_table(config, "lora", LoraSettings), config["training"]
    (template,) = (
        one["inputs"]
        for one in json.loads((ROOT / "workflows" / "api" / "VGT-8-train-lora.json").read_text("utf-8")).values()
        if one["class_type"] == "VGTTrainLoRA"
    )
    for found in (node_defaults, template):
        parts = tuple(PARTS) if found["train"] == "everything" else (found["train"],)
        assert (found["rank"], found["alpha"], parts) == (lora.rank, lora.alpha, lora.parts)
        for name in ("steps", "batch_size", "learning_rate"):
            assert found[name] == training[name], name
    assert template["keep"].splitlines() == (ROOT / "pictures" / "keep.txt").read_text("utf-8").splitlines()
    assert lora.keep == LoraSettings().keep and training["weight_decay"] == 0 and training["warmup"] == 10


def test_cli_and_node_give_the_same_tensors(host, tmp_path):
    """Two training nodes in one graph: neither bears on the other."""
    both = saved(trained(seed=7), "parity")
    both["other"] = node("VGTTrainLoRA", **{**both["train"]["inputs"], "seed": 8, "train": "flow head"})
    both["save_other"] = node("SaveLoRA", lora=["other", 1], prefix="loras/other", steps=["other", 3])
    host.run(both)
    assert list((host.base / "output" / "loras").glob("other_4_steps_*.safetensors"))
    node_file = sorted((host.base / "output" / "loras").glob("parity_4_steps_*.safetensors"))[-1]
    config = {
        "model": str(PATH),
        "keep": SETTINGS["keep"].splitlines(),
        "data": {"kind": "folder", "path": str(ROOT / "pictures" / "crescent"), "size": 224},
        "lora": {"rank": 4, "alpha": 4.0, "parts": list(PARTS)},
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


def test_bad_input_is_one_sentence_each(host, lora, model, tmp_path):
    install_models(host)
    folder = host.base / "models" / "loras"
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 8)}
    save_file(flux, folder / "flux.safetensors")
    (folder / "broken.safetensors").write_bytes(b"<html>404</html>")
    assert "flux.safetensors is a LoRA of Flux and fits no layer of " + PATH.stem in sentence(
        host, with_lora(load(NAME), ("flux.safetensors", 1.0))
    )
    assert "broken.safetensors cannot be read as a LoRA" in sentence(
        host, with_lora(load(NAME), ("broken.safetensors", 1.0))
    )
    other = with_lora(load(INTERN), (lora.name, 1.0))
    assert f"is a LoRA of {NAME} (qwen2_5_vl), not of internvl3.safetensors" in sentence(host, other)
    assert "tokenizer_only.safetensors is a tokenizer only" in sentence(host, saved(trained(model=TOKENIZER_ONLY)))


def test_pictures_without_captions_and_of_many_sizes(host):
    bare = host.base / "input" / "bare"
    shutil.copytree(ROOT / "pictures" / "crescent", bare, dirs_exist_ok=True)
    with Image.open(bare / "00.png") as picture:
        picture.resize((600, 300)).save(bare / "00.png")
        picture.resize((90, 90)).save(bare / "01.png")
    host.run(saved(trained("bare", batch_size=4, steps=2), "sizes"))
    assert "of 24 pictures 1 were made smaller" in host.log()
    silent = host.base / "input" / "silent"  # another folder: the host reads each once
    shutil.copytree(bare, silent, dirs_exist_ok=True)
    for name in ("02.txt", "03.txt"):
        (silent / name).unlink()
    assert "2 of the 24 pictures have no caption" in sentence(host, saved(trained("silent", seed=9)))
    mute, empty = host.base / "input" / "mute", host.base / "input" / "empty"
    mute.mkdir()
    empty.mkdir()
    shutil.copy(bare / "04.png", mute)
    assert "1 of the 1 pictures have no caption" in sentence(host, saved(trained("mute")))
    assert "No valid images found" in sentence(host, saved(trained("empty")))  # the host's own node says it first


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(host):
    said = sentence(host, saved(trained(learning_rate=1.0, alpha=1000.0, steps=60, rank=1, seed=4)))
    found = re.search(
        r"The (loss|gradient) became (nan|inf) in step (\d+).* What was learnt by step (\d+) is in (\S+\.safetensors)",
        said,
    )
    assert found, said
    assert 0 < int(found[4]) < int(found[3]) - 1  # the weights after the step before are those that gave no number
    kept = load_file(found[5])
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert any(tensor.abs().max() > 0 for name, tensor in kept.items() if name.endswith("lora_up.weight"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_200_steps_leave_memory_and_model_as_they_were(host):
    """The fixtures' model is enough: what a run leaves behind does not depend on the model's size."""
    install_models(host)

    def resident():
        with open(f"/proc/{host.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    before = run_latent(host, with_lora(load(INTERN), model=INTERN, seed=11))
    host.run(saved(trained(model=INTERN, steps=2, seed=10), "warm"))  # libraries load what they need once
    memory = resident()
    host.run(saved(trained(model=INTERN, steps=200, seed=11), "long"))
    assert torch.equal(run_latent(host, with_lora(load(INTERN), model=INTERN, seed=11, cfg=3.0)), before)
    assert resident() < 1.03 * memory, (resident(), memory)


OUT_OF_MEMORY = """
import resource
import folder_paths
from pack.nodes.host import training
loading.register_model_folder()
folder_paths.add_model_folder_path("vgt", ROOT + "/models")
model, vae = loading.load_model(loading.model_names()[0], "auto")  # the bundled one
plain = training.train

def tight(*args, **settings):
    with open("/proc/self/statm") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 ** 20, resource.RLIM_INFINITY))
    try:
        return plain(*args, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

training.train = tight
said = []
for batch, checkpointing in ((64, True), (1, False), (1, True)):
    settings = {**SETTINGS, "batch_size": batch, "gradient_checkpointing": checkpointing, "keep": "", "rank": 256}
    settings.pop("existing_lora")
    try:
        training.train_lora(model, vae, [torch.rand(1, 224, 224, 3)], ["a red circle"], None, "", **settings)
    except RuntimeError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.mark.host
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_out_of_memory_says_what_to_change(tmp_path):
    """An allocation that is refused: the process may not grow while it trains."""
    batch, checkpointing, rank = run_script(tmp_path, BEGIN, OUT_OF_MEMORY, SETTINGS=SETTINGS)
    begin = "There is not enough memory to train; "
    assert batch == begin + "lower batch_size (64) and raise accumulation instead."
    assert checkpointing == begin + "switch gradient_checkpointing on."
    assert rank == begin + "lower rank (256), train a part only, or choose fp8_e4m3fn in VGT Loader."


def test_cancel_leaves_what_was_learnt_to_go_on_from(host):
    """The host's own Cancel, in the middle of a run."""
    folder = host.base / "output" / "loras"
    before = set(folder.glob("VGT_stopped_*"))
    with host.events() as events:
        prompt = host.queue(saved(trained(steps=5000, seed=6)))
        events.wait_for("progress_state", lambda data: data["nodes"].get("train", {}).get("value", 0) >= 2)
        host.interrupt()
        with pytest.raises(Interrupted):
            host.wait(prompt)
    (stopped,) = set(folder.glob("VGT_stopped_*_steps_*.safetensors")) - before
    graph = saved(trained(steps=2, existing_lora=stopped.name), "went_on")
    host.run(graph)
    done = int(stopped.name.split("_")[2])
    assert list((host.base / "output" / "loras").glob(f"went_on_{done + 2}_steps_*.safetensors"))
