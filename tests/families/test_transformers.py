"""VLMs without a family file, through the transformers library: every stage, and the same numbers as the library's."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vgt
import vlms
from miniatures import autoencoder, generator, losses
from vgt.config import FlowHeadConfig, GeneratorConfig
from vgt.files.checkpoint import CheckpointError
from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.networks.language_model import KVCache
from vgt.networks.transformers_language import TransformersLanguageModel
from vgt.training import autoencoder_command, generator_command
from vgt.training.base_model import load_base
from vgt.training.build import new_generator
from vgt.training.settings import TrainingError

pytest.importorskip("transformers")

ANY_SIZE = ["smolvlm", "idefics3", "llava_onevision", "glm4v"]
KINDS = [*ANY_SIZE, "gemma3"]
TOKEN_PIXELS = {"smolvlm": 16, "idefics3": 16, "llava_onevision": 14, "glm4v": 28, "gemma3": 28}


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    """(kind, folder, the library's model, the same as we read it)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = vlms.save_base(request.param, folder / "base")
    return request.param, folder, model, load_base(folder / "base")


def test_a_base_model_is_read(base):
    kind, _, _, found = base
    assert (found.family, found.token_pixels) == ("transformers", TOKEN_PIXELS[kind])
    assert found.vision.only_grid == (4 if kind == "gemma3" else 0)
    assert (found.language.depth, found.language.kv_heads) == (2, 2)
    assert found.language.max_positions == (256 if kind == "gemma3" else 512)  # no farther than its window
    assert found.language.turn == "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert found.pad_token == vlms.PAD


def native_features(kind, model, pixels):
    """The library's image features of normalised pixels as a user of the library gets them, [B, T, D]."""
    ask = getattr(model.model, "get_image_features", None) or model.get_image_features
    if kind in ("smolvlm", "idefics3"):
        answer = ask(pixels[:, None])
    elif kind == "llava_onevision":
        # Of several images in a prompt each is one tile, followed by the vector that ends a line.
        sizes = torch.tensor([pixels.shape[2:]] * len(pixels))
        answer = ask(pixels[:, None], sizes, vision_feature_layer=-1, vision_feature_select_strategy="full",
                     vision_aspect_ratio="anyres_max_9", batch_num_images=torch.tensor([len(pixels)]))  # fmt: skip
        answer = getattr(answer, "pooler_output", answer)
        return torch.stack([one[:-1] for one in answer])
    elif kind == "glm4v":
        from transformers import Glm4vImageProcessor
        from transformers.image_utils import ChannelDimension

        processor = Glm4vImageProcessor(
            do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False,
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1000},
        )  # fmt: skip
        images = [one.numpy() for one in pixels]
        ready = processor(images, return_tensors="pt", input_data_format=ChannelDimension.FIRST)
        answer = ask(ready["pixel_values"], ready["image_grid_thw"])
    else:
        answer = ask(pixels)
    answer = getattr(answer, "pooler_output", answer)
    return torch.stack(list(answer)) if isinstance(answer, tuple | list) else answer


@torch.no_grad()
def test_image_features_are_the_librarys_at_its_own_size(base):
    kind, _, model, found = base
    tower = found.vision.build(found.language.width).eval()
    tower.load_state_dict(found.vision_state)
    side = {"smolvlm": 64, "idefics3": 64, "llava_onevision": 56, "glm4v": 56, "gemma3": 112}[kind]
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.5)))
    theirs = native_features(kind, model, (pixels - mean) / std)
    ours = tower(pixels)
    assert ours.shape == (2, (side // found.token_pixels) ** 2, 32)
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
    if kind == "smolvlm":
        # its code drops images of nothing but zeros, which this colour becomes
        grey = mean.expand(1, 3, side, side).contiguous()
        assert tower(torch.cat((grey, pixels))).shape[0] == 3


@torch.no_grad()
def test_oblong_images_keep_their_places(base):
    """What stands in the left of an image moves the left of its grid, row by row."""
    kind, _, _, found = base
    tower = found.vision.build(found.language.width).eval()
    tower.load_state_dict(found.vision_state)
    p = found.token_pixels
    pixels = torch.rand(1, 3, 3 * p, 5 * p, generator=torch.Generator().manual_seed(0))
    if kind == "gemma3":
        with pytest.raises(ValueError, match="takes images of 112x112 alone"):
            tower(pixels)
        return
    changed = pixels.clone()
    changed[:, :, p : 2 * p, 3 * p : 4 * p] = 1 - changed[:, :, p : 2 * p, 3 * p : 4 * p]
    moved = (tower(changed) - tower(pixels)).norm(dim=-1)[0]
    assert len(moved) == 15
    assert int(moved.argmax()) == 1 * 5 + 3


@torch.no_grad()
def test_steps_over_our_cache_are_one_pass_of_the_librarys_model(base):
    _, _, model, found = base
    config = GeneratorConfig(found.language, FlowHeadConfig(16, 1), 4)
    ours = new_generator(config, "transformers", 0, found.token_pixels).language_model.eval()
    ours.load_state_dict(found.language_state)
    theirs = next(part for part in model.modules() if getattr(part, "embed_tokens", None) is not None)
    assert theirs is not ours.model
    embeds = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 2, 2, 3, 4, 5, 6]])
    causal = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 9, 9)
    wanted = theirs(inputs_embeds=embeds, position_ids=positions, attention_mask=causal).last_hidden_state

    rotary = ours.rotary(positions, torch.float32)
    assert torch.allclose(ours(embeds, rotary, None), wanted, atol=1e-4)
    for named in (False, True):
        cache, states, at = KVCache(found.language, 2, 12, "cpu", torch.float32), [], 0
        for size in (4, 1, 2, 2):
            part = tuple(one[:, :, at : at + size] for one in rotary)
            slot, mask = at, None
            if named:  # as in a CUDA graph: slots in a tensor, the whole cache seen through a mask
                slot = torch.arange(at, at + size)
                mask = (torch.arange(12) <= slot[:, None])[None, None]
            states.append(ours(embeds[:, at : at + size], part, cache, slot, mask))
            at += size
        assert torch.allclose(torch.cat(states, dim=1), wanted, atol=1e-4)


def test_all_stages_and_a_file_that_needs_no_network(base, monkeypatch):
    _, folder, _, found = base
    side = (found.vision.only_grid or 2) * found.token_pixels
    pictures = {"kind": "scenes", "size": side, "seed": 1, "length": 64}
    first = autoencoder(folder, steps=3, sheet_every=3)
    first |= {"data": pictures, "held_out": {**pictures, "length": 4, "split": "test"}}
    autoencoder_command.run(first, folder / "ae", None)
    second = {**autoencoder(folder, {"noise": 0.2}, steps=2), "data": pictures, "held_out": first["held_out"]}
    autoencoder_command.run({**second, "init": str(folder / "ae" / autoencoder_command.FILE)}, folder / "ae2", None)
    third = generator(folder, folder / "ae2", steps=3)
    third |= {"data": {**pictures, "count": 8}, "objective": {"repa": 0.1, "openings": [0, 2]}}
    generator_command.run(third, folder / "ar", None)
    assert len(losses(folder / "ae")) == len(losses(folder / "ar")) == 3

    def refuse(*_arguments, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = vgt.load(folder / "ar" / generator_command.FILE)
    assert model.config.family == "transformers"
    size = {"height": side, "width": side, "flow": vgt.FlowSettings(steps=3)}
    for decoding in ("published", "training-consistent"):
        for together in (1, 3):
            drawn = model.generate(
                ["a red circle", "blue"], tokens_per_step=together, decoding=decoding, negative="a", **size
            )
            assert drawn.shape == (2, 32, side // found.token_pixels, side // found.token_pixels)
            assert torch.isfinite(drawn).all()
    pixels = model.decode(drawn)
    assert pixels.shape == (2, 3, side, side)
    assert model.encode(torch.rand(1, 3, side, side)).shape == drawn[:1].shape
    if found.vision.only_grid:  # any image is resized to the size that the tower takes
        assert model.encode(torch.rand(1, 3, side + found.token_pixels, side)).shape == drawn[:1].shape
    first_way = model.generate("a red circle", tokens_per_step=2, decoding="published", **size)
    copy = read_checkpoint(folder / "ar" / generator_command.FILE)
    save_checkpoint(copy, folder / "again.safetensors")
    again = vgt.load(folder / "again.safetensors")
    assert torch.equal(again.generate("a red circle", tokens_per_step=2, decoding="published", **size), first_way)


def test_the_first_layers_can_be_kept(tmp_path):
    vlms.save_base("smolvlm", tmp_path / "base")
    found = load_base(tmp_path / "base", layers=1)
    assert found.language.depth == 1
    assert not any("layers.1." in name for name in found.language_state)
    assert json.loads(found.language.source)["text_config"]["num_hidden_layers"] == 1


@torch.no_grad()
def test_a_hosts_linear_layers_take_the_librarys_place(tmp_path):
    class Host:
        class Linear(torch.nn.Linear):
            pass

    vlms.save_base("llava_onevision", tmp_path / "base")
    found = load_base(tmp_path / "base")
    models = [TransformersLanguageModel(found.language, operations=one) for one in (torch.nn, Host)]
    for model in models:
        model.load_state_dict(found.language_state)
    linear = [type(layer) for layer in models[1].modules() if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 2 * 7 and set(linear) == {Host.Linear}
    embeds, positions = torch.randn(1, 5, 32), torch.arange(5)[None]
    first, second = (model(embeds, model.rotary(positions, torch.float32), None) for model in models)
    assert torch.equal(first, second)


def test_bfloat16_leaves_the_librarys_tables_in_float32(tmp_path):
    vlms.save_base("llava_onevision", tmp_path / "base")
    found = load_base(tmp_path / "base")
    model = found.vision.build(32, device="meta", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    language = TransformersLanguageModel(found.language, device="meta", dtype=torch.bfloat16)
    tables = [buffer for name, buffer in language.named_buffers() if "inv_freq" in name]
    assert tables and all(buffer.dtype == torch.float32 and not buffer.is_meta for buffer in tables)


def change(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("idefics2", "its image features form no grid"),
        ("lfm2_vl", "its language model has layers of 'conv'"),
    ],
)
def test_what_cannot_be_served_says_so(kind, message, tmp_path):
    vlms.save_base(kind, tmp_path / "base")
    change(tmp_path / "base", "config.json", model_type=kind)  # some versions save a name that they do not read
    with pytest.raises(TrainingError, match=message) as caught:
        load_base(tmp_path / "base")
    assert str(caught.value).count(". ") == 0  # one sentence


def test_bad_base_models_are_named(tmp_path):
    folder = tmp_path / "base"
    vlms.save_base("smolvlm", folder)
    with pytest.raises(TrainingError, match="holds a model of type 'smolvlm'; internvl3 is needed"):
        load_base(folder, "internvl3")
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    with pytest.raises(TrainingError, match="tells no image_mean and image_std"):
        load_base(folder)
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    change(folder, "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(TrainingError, match="name no pad_token and no eos_token"):
        load_base(folder)
    change(folder, "tokenizer_config.json", pad_token=vlms.PAD, chat_template="{{ 'hello' }}")
    with pytest.raises(TrainingError, match="puts no prompt into a user's turn"):
        load_base(folder)
    change(folder, "tokenizer_config.json", chat_template=None)
    assert load_base(folder).language.turn == "{text}\n"
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"model_type": "nonesuch"}, "transformers .* does not know models of type 'nonesuch'; update it"),
        ({"model_type": "llama"}, "transformers .* has no image-text-to-text model of type 'llama'"),
        ({"transformers_version": "99.1"}, r"is older than its configuration \(99.1\); update it"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(TrainingError, match=message):
            load_base(folder)


def test_an_old_library_is_named(tmp_path, monkeypatch):
    vlms.save_base("smolvlm", tmp_path / "base")
    monkeypatch.setattr("transformers.__version__", "4.50.3")
    with pytest.raises(TrainingError, match=r"needs the transformers library from 4\.57 on; this is 4\.50\.3\.$"):
        load_base(tmp_path / "base")


def test_code_and_kernels_that_a_configuration_names_are_left_out():
    from vgt.networks.transformers_library import check_source, class_and_config, plain_config

    config = {"model_type": "smolvlm", **vlms.CONFIGS["smolvlm"]}
    names = {"auto_map": {"AutoModel": "evil--x"}, "_attn_implementation": "hub/kernel", "quantization_config": {}}
    sneaky = {**config, **names, "vision_config": {**config["vision_config"], "attn_implementation": "hub/kernel"}}
    assert plain_config(sneaky) == config
    _, found = class_and_config(json.dumps(sneaky))
    assert not hasattr(found, "auto_map")
    for source in ("[]", json.dumps({"text_config": {"num_hidden_layers": 10**9}}), json.dumps({"hidden_size": 2**40})):
        with pytest.raises(ValueError):
            check_source(source)


WITHOUT = """
import sys
sys.modules["transformers"] = None
import vgt, vgt.families
vgt.families.find_spec = lambda name: None
from vgt.training.base_model import load_base
for work in (lambda: load_base(sys.argv[1]), lambda: vgt.load(sys.argv[2])):
    try:
        work()
    except ValueError as error:
        print(error)
"""


def test_without_the_library_one_sentence_says_so(tmp_path):
    vlms.save_base("smolvlm", tmp_path / "base")
    pictures = {"kind": "scenes", "size": 32, "seed": 1, "length": 8}
    config = autoencoder(tmp_path, {"distillation": 0.0}, steps=1)
    config |= {"data": pictures, "held_out": {**pictures, "split": "test"}}
    autoencoder_command.run(config, tmp_path / "ae", None)
    file = tmp_path / "ae" / autoencoder_command.FILE
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "base"), str(file)],
        cwd=Path(vgt.__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert len(lines) == 2, ran.stderr
    assert "holds a model of type 'smolvlm', which needs the transformers library" in lines[0]
    assert lines[1].startswith(f"{file.name} cannot be loaded: it needs the transformers library")


def test_a_damaged_file_is_refused_before_anything_is_built(tmp_path):
    vlms.save_base("smolvlm", tmp_path / "base")
    found = load_base(tmp_path / "base")
    pictures = {"kind": "scenes", "size": 32, "seed": 1, "length": 8}
    config = autoencoder(tmp_path, {"distillation": 0.0}, steps=1)
    config |= {"data": pictures, "held_out": {**pictures, "split": "test"}}
    autoencoder_command.run(config, tmp_path / "ae", None)
    checkpoint = read_checkpoint(tmp_path / "ae" / autoencoder_command.FILE)
    for changes in ({"source": "{"}, {"source": json.dumps({"depth": 10**6})}, {"std": (0.0, 1.0, 1.0)}):
        vision = replace(found.vision, **changes)
        damaged = replace(checkpoint.config, autoencoder=replace(checkpoint.config.autoencoder, vision=vision))
        checkpoint.config = damaged
        save_checkpoint(checkpoint, tmp_path / "damaged.safetensors")
        with pytest.raises(CheckpointError, match=r"damaged.safetensors holds a vgt.config that cannot be used"):
            vgt.load(tmp_path / "damaged.safetensors")


def test_the_library_is_not_imported_until_it_is_needed():
    code = "import sys, vgt.families, vgt.training.base_model as _; vgt.families.families()"
    code += "; print('transformers' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(vgt.__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
