"""LoRA training on a tiny model: resuming, accumulation, what stays as it was, memory, and bad input."""

import copy
import importlib.util
import json
import random
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import webdataset
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import vgt
from graphs import FIXTURES
from host import ROOT
from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.evaluation import scenes
from vgt.families import family
from vgt.files.lora import LoraError
from vgt.files.reading import convert
from vgt.networks.adapters import PARTS, Adapters
from vgt.prompt import PromptTokenizer
from vgt.scenes.lessons import LESSONS, PICTURES, combinations, judge, pictures, prompts, scene_of, write
from vgt.scenes.world import render, to_pixels
from vgt.training import lora_command
from vgt.training.build import new_generator
from vgt.training.command import run_stage
from vgt.training.data import DataError
from vgt.training.lora import OBJECTIVE, LoraSettings, LoraStage, Pictures
from vgt.training.memory import lora_memory
from vgt.training.processes import together
from vgt.training.settings import Settings, TrainingError
from vgt.training.text import train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "qwen.safetensors"
    convert(FIXTURES / "qwen2_5_vl", path)
    return path


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesson")
    write("crescent", folder, 56)
    return folder


def config(model, lesson, **changes):
    training = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "warmup": 1, "log_every": 1, "save_every": 3}
    return {
        "model": str(model),
        "keep": ["a red circle", "a blue square"],
        "prompts": ["a red crescent"],
        "data": {"kind": "folder", "path": str(lesson), "size": 56},
        "lora": {"rank": 2, "alpha": 2.0},
        "training": {**training, "sheet_every": 6, "device": "cpu", "dtype": "float32", "threads": 1, **changes},
    }


@pytest.fixture(scope="module")
def trained(model, lesson, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    lora_command.run(config(model, lesson), out, None)
    return out


def test_a_resumed_run_gives_the_same_file(model, lesson, trained, tmp_path):
    lora_command.run(config(model, lesson), tmp_path, 3)
    lora_command.run(config(model, lesson), tmp_path, None)
    assert (tmp_path / lora_command.FILE).read_bytes() == (trained / lora_command.FILE).read_bytes()
    assert (trained / "sheet-000006.png").is_file()
    losses = [
        json.loads(line)["flow"] for line in (trained / "metrics.jsonl").read_text().splitlines() if "flow" in line
    ]
    assert len(losses) == 6


def test_a_run_that_goes_on_from_a_lora_counts_its_steps(model, lesson, trained, tmp_path):
    lora_command.run({**config(model, lesson), "init": str(trained / lora_command.FILE)}, tmp_path, None)
    about = json.loads(load_file(tmp_path / lora_command.FILE)["vgt.lora"].numpy().tobytes())
    assert (about["steps"], about["family"]) == (12, "qwen2_5_vl")


@pytest.mark.parametrize("checkpointing", (True, False))
def test_memory_is_what_was_computed(checkpointing):
    """Every allocation of two steps, counted: within 15 % of the estimate, from which 1.6B's 10 GB are computed."""
    language = LanguageModelConfig(256, 8, 4, 2, 1024, 400, head_width=64)
    config = GeneratorConfig(language, FlowHeadConfig(192, 6), 16)
    generator = new_generator(config, "qwen2_5_vl", 0).requires_grad_(False)
    lora = LoraSettings(16, 16.0, tuple(PARTS), checkpointing=checkpointing)
    stage, adapters, text = small_stage(generator, lora, batch=2, side=10)
    estimate = lora_memory(config, lora, OBJECTIVE, batch=2, text=text, tokens=100, itemsize=4)
    counted = peak(lambda: steps(stage, adapters, 2)) + 4 * sum(p.numel() for p in adapters.parameters())
    assert 0.85 < estimate / counted < 1.15, (estimate, counted)


def test_memory_of_the_published_model_stays_below_10_gb():
    """1.6B in bfloat16, rank 16, batch 1, 448x448, checkpointing: the weights, and what training takes beside them."""
    config = GeneratorConfig(LanguageModelConfig(1536, 28, 12, 2, 8960, 151674))
    generator = new_generator_size(config)
    beside = lora_memory(
        config, LoraSettings(16, 16.0, tuple(PARTS)), OBJECTIVE, batch=1, text=128, tokens=256, itemsize=2
    )
    assert generator * 2 + beside < 10e9
    print(f"{generator / 1e9:.2f}e9 weights, {generator * 2 / 1e9:.2f} + {beside / 1e9:.2f} GB")


def new_generator_size(config):
    from vgt.run.generation import Generator

    return sum(weight.numel() for weight in Generator(config, "internvl3", device="meta").parameters())


def test_the_base_stays_as_it_is_and_adapters_alone_learn(model):
    generator = vgt.load(model).generator
    before = copy.deepcopy(generator.state_dict())
    stage, adapters, _ = small_stage(
        generator, LoraSettings(2, 2.0), batch=2, side=2, tokenizer=vgt.load(model).tokenizer
    )
    steps(stage, adapters, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert any(adapter.up.abs().max() > 0 for adapter in adapters.adapters)


def test_accumulated_batches_make_one_step(model, lesson, tmp_path):
    lora_command.run(config(model, lesson, accumulation=2, steps=3), tmp_path, None)
    losses = [
        json.loads(line)["flow"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "flow" in line
    ]
    assert len(losses) == 3


def test_shards_teach_what_the_folder_does(model, lesson, trained, tmp_path):
    """WebDataset, the same pictures; they come in another order."""
    with webdataset.TarWriter(str(tmp_path / "lesson-0.tar")) as tar:
        for path in sorted(lesson.glob("*.png"), reverse=True):
            text = path.with_suffix(".txt").read_text().strip()
            tar.write({"__key__": path.stem, "png": path.read_bytes(), "txt": text})
    shards = {"kind": "webdataset", "path": str(tmp_path / "lesson-0.tar"), "size": 56, "count": PICTURES}
    lora_command.run({**config(model, lesson), "data": shards}, tmp_path / "out", None)
    found, wanted = (load_file(folder / lora_command.FILE) for folder in (tmp_path / "out", trained))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_two_processes_learn_together(model, lesson, tmp_path):
    assert together(2, "cpu", run_stage, "lora", {**config(model, lesson), "prompts": []}, tmp_path / "two", None) == 0
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "flow" in line]) == 6
    learnt = load_file(tmp_path / "two" / lora_command.FILE)
    assert any(tensor.abs().max() > 0 for name, tensor in learnt.items() if name.endswith("lora_up.weight"))
    assert vgt.load(model).with_lora(tmp_path / "two" / lora_command.FILE) is not None


def test_moments_in_8_bits(model, lesson, tmp_path, monkeypatch):
    """With torchao it learns, and goes on where it stopped; without, a sentence says what to install."""
    if importlib.util.find_spec("torchao"):
        # Smaller matrices than of 4096 numbers keep their moments whole.
        eight = {**config(model, lesson, eight_bit=True), "lora": {"rank": 64, "alpha": 64.0}}
        for until in (3, None):
            lora_command.run(eight, tmp_path / "out", until)
        learnt = load_file(tmp_path / "out" / lora_command.FILE)
        assert any(tensor.abs().max() > 0 for name, tensor in learnt.items() if name.endswith("lora_up.weight"))
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(TrainingError, match=r"training.eight_bit needs the torchao library; install it"):
        lora_command.run(config(model, lesson, eight_bit=True), tmp_path / "none", None)


def test_what_is_learnt_always_has_its_prompt_and_what_is_kept_not(model):
    """Guidance leads away from what is drawn without a prompt: that must stay the base's."""
    loaded = vgt.load(model)
    stage, adapters, _ = small_stage(loaded.generator, LoraSettings(2, 2.0), 2, 2, tokenizer=loaded.tokenizer)
    stage.kept, stage.objective = stage.dataset, replace(OBJECTIVE, drop_prompt=1.0)
    asked = []
    tokenizer = stage.tokenizer
    stage.tokenizer = lambda prompts, negatives: (
        asked.append((len(prompts), len(negatives))) or tokenizer(prompts, negatives)
    )
    stage.tokenizer.image_start = tokenizer.image_start
    with adapters.on(stage.generator):
        stage(next(stage.batches(0, 0, 1)), torch.Generator().manual_seed(0))
    assert asked == [(2, 0), (0, 2), (0, 2)]


def test_a_loss_that_is_not_finite_stops(model, lesson, tmp_path):
    with pytest.raises(TrainingError, match=r"became (nan|inf) in step \d+; the checkpoint of step \d+ is kept"):
        lora_command.run(config(model, lesson, learning_rate=1e30, steps=30, save_every=1, clip=1e30), tmp_path, None)


def test_a_lora_of_another_model_is_named(model, trained, tmp_path):
    other = tmp_path / "intern.safetensors"
    convert(FIXTURES / "internvl3", other)
    with pytest.raises(LoraError, match=r"is a LoRA of qwen.safetensors \(qwen2_5_vl\), not of intern"):
        vgt.load(other).with_lora(trained / lora_command.FILE)
    others = {
        "Flux": "transformer.double_blocks.0.img_attn.qkv.lora_up.weight",
        "Stable Diffusion or SDXL": "lora_unet_input_blocks_4_1_proj_in.lora_up.weight",
        "another model": "blocks.0.lora_up.weight",
    }
    for name, key in others.items():
        save_file({key: torch.zeros(8, 2)}, tmp_path / "other.safetensors")
        with pytest.raises(LoraError, match=f"other.safetensors is a LoRA of {name} and fits no layer of intern"):
            vgt.load(other).with_lora(tmp_path / "other.safetensors")


def test_what_cannot_be_taught_or_learnt_from_is_one_sentence(model, lesson, tmp_path):
    convert(FIXTURES / "internvl3" / "vgt_ae_internvl3.pth", tmp_path / "tokenizer.safetensors")
    with pytest.raises(TrainingError, match=r"tokenizer.safetensors is a tokenizer only and cannot be taught"):
        lora_command.run(config(tmp_path / "tokenizer.safetensors", lesson), tmp_path / "out", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no pictures"):
        lora_command.run(config(model, tmp_path / "empty"), tmp_path / "out", None)
    shutil.copy(lesson / "00.png", tmp_path / "empty")
    with pytest.raises(DataError, match=r"00.png has no caption"):
        lora_command.run(config(model, tmp_path / "empty"), tmp_path / "out", None)


def test_parts_of_a_joined_matrix_and_what_fits_partly(model, tmp_path, caplog):
    """A file of the base model's language model: q_proj is some rows of ours. What does not fit is counted."""
    loaded = vgt.load(model)
    language = loaded.config.generator.language
    rows, width = language.kv_heads * language.head_width, language.width
    up, down = torch.randn(rows, 2), torch.randn(2, width)
    name = "base_model.model.model.layers.0.self_attn.{}.lora_{}.weight"
    tensors = {name.format("k_proj", "B"): up, name.format("k_proj", "A"): down}
    tensors |= {name.format("o_proj", "B"): torch.zeros(3, 2), name.format("o_proj", "A"): torch.zeros(2, 5)}
    save_file(tensors, tmp_path / "peft.safetensors")
    changed = loaded.with_lora(tmp_path / "peft.safetensors", 0.5).generator.state_dict()
    before = loaded.generator.state_dict()
    key = "language_model.layers.0.self_attn.qkv_proj.weight"
    first = language.heads * language.head_width
    wanted = before[key].clone()
    wanted[first : first + rows] += 0.5 * up @ down
    torch.testing.assert_close(changed[key], wanted)
    assert all(torch.equal(changed[other], before[other]) for other in before if other != key)
    assert "1 of the 2 layers of peft.safetensors fit qwen.safetensors; the others are left out" in caplog.text


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_rules_tell_a_lesson_from_what_the_model_knew(lesson):
    """All renders of a lesson's pictures pass; a star, or a filled shape, does not."""

    rng = random.Random(0)
    for combination in combinations(lesson)[0]:
        scene = scene_of(combination, rng)
        assert judge(lesson, scene.request, to_pixels(render(scene, 112, outlined=lesson == "outlines"))) is None
        other = scene if lesson == "outlines" else scene_of(("star", *combination[1:]), rng)
        assert judge(lesson, scene.request, to_pixels(render(other, 112))) is not None


def test_prompts_ask_for_what_no_picture_shows():
    for lesson in LESSONS:
        shown = {caption for _, caption in pictures(lesson, 56)}
        asked = prompts(lesson, 60)
        assert len(asked) == 60 and not shown & {caption for _, caption in asked}


def test_no_prompt_of_the_score_is_practised():
    """What is kept holds no prompt of the held-out scenes, by which it is judged what a model has forgotten."""
    practised = set((ROOT / "pictures" / "keep.txt").read_text("utf-8").splitlines())
    assert not practised & {caption for _, caption in scenes.prompts(900)}


def small_stage(generator, lora, batch, side, tokenizer=None):
    if tokenizer is None:
        found = family("qwen2_5_vl")
        json_ = train_tokenizer(["a red circle on white"] * 9, 300, found.special_tokens).encode()
        tokenizer = PromptTokenizer(json_, found.special_tokens[0], found.template)
    adapters = Adapters(generator, tuple(PARTS), lora.rank, lora.alpha, 0)
    data = Pictures([torch.randn(32, side, side) for _ in range(batch)], ["a red circle on white"] * batch)
    stage = LoraStage(generator, tokenizer, adapters, lora, OBJECTIVE, data, Settings(1, batch, 1e-3))
    return stage, adapters, tokenizer(["a red circle on white"], None).lengths[0]


def steps(stage, adapters, count):
    optimiser = torch.optim.AdamW(adapters.parameters(), fused=True)
    batches = stage.batches(0, 0, 1)
    for step in range(count):
        with sdpa_kernel(SDPBackend.MATH), adapters.on(stage.generator):
            loss, _ = stage(next(batches), torch.Generator().manual_seed(step))
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def peak(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = highest = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest
