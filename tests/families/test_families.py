"""Every family walks through the same list: a new file in vgt/families is tested by being there.

`transformers` is a development requirement; its modules are the authority.
"""

import json
from dataclasses import replace

import pytest
import torch

import miniatures
import vgt
from family_models import DECODER, checkpoint_of, language_of, randomise, tokenizer_of
from vgt.config import AutoencoderConfig, ModelConfig
from vgt.families import families, family, recognise_base
from vgt.files.layout import hub_name
from vgt.files.reading import convert
from vgt.files.sizes import LayoutError, Sizes, merge_of
from vgt.networks.autoencoder import Autoencoder
from vgt.networks.language_model import rotary_table
from vgt.run.generation import Generator
from vgt.training import autoencoder_command, generator_command
from vgt.training.base_model import load_base, save_base
from vgt.training.build import new_language_model
from vgt.training.captioning import VisionLanguageModel
from vgt.training.settings import TrainingError

NAMES = [found.name for found in families() if not found.fallback]
SIZES = [(2, 2), (2, 3), (5, 4)]
"""Of images, in tokens."""
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=NAMES)
def found(request):
    return family(request.param)


@pytest.fixture(scope="module")
def tokenizer_json(found):
    return tokenizer_of(found)


@pytest.fixture(scope="module")
def language(found):
    return language_of(found)


@pytest.fixture(scope="module")
def theirs(found, language, tokenizer_json, tmp_path_factory):
    """transformers' own model of the family with random weights, and our reading of the folder it is saved to."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForImageTextToText

    ids = {token: Tokenizer.from_str(tokenizer_json).token_to_id(token) for token in found.special_tokens}
    table = found.transformers_config(found.miniature, language, ids)
    config = AutoConfig.for_model(**table, dtype="float32")
    model = randomise(AutoModelForImageTextToText.from_config(config).float())
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json)
    return model, load_base(folder)


@pytest.fixture(scope="module")
def base(found, language, tokenizer_json, tmp_path_factory):
    """A folder whose `base` is a base model in the hub layout, as we write it."""
    folder = tmp_path_factory.mktemp(found.name)
    torch.manual_seed(0)
    vlm = VisionLanguageModel(found.miniature.build(language.width), new_language_model(language, 0))
    save_base(folder / "base", found.name, found.miniature, language, vlm, tokenizer_json)
    return folder, vlm


def test_the_tower_is_that_of_transformers(found, theirs, language):
    model, ours = theirs
    tower = ours.vision.build(language.width)
    tower.load_state_dict(ours.vision_state)
    for rows, columns in SIZES:
        side = ours.token_pixels
        pixels = torch.rand(2, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, features = found.transformers_features(model, pixels), tower(pixels)
        assert features.shape == (2, rows * columns, language.width)
        torch.testing.assert_close(features, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_language_model_is_that_of_transformers(found, theirs, language):
    model, ours = theirs
    assert (ours.vision, ours.language) == (found.miniature, language)
    module = found.language_model(language)
    module.load_state_dict(ours.language_state)
    embeds = torch.randn(2, 9, language.width, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(9).expand(2, -1)
    with torch.no_grad():
        hidden = module(embeds, rotary_table(language, positions), None)
        expected = model.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_base_model_comes_back_as_it_was_written(found, base, language):
    folder, vlm = base
    assert recognise_base(json.loads((folder / "base" / "config.json").read_text())) is found
    ours = load_base(folder / "base", found.name)
    assert (ours.family, ours.vision, ours.language) == (found.name, found.miniature, language)
    for state, module in ((ours.vision_state, vlm.vision_tower), (ours.language_state, vlm.language_model)):
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert load_base(folder / "base", layers=1).language.depth == 1


def test_images_of_any_shape_are_encoded_and_decoded(found):
    autoencoder = randomise(Autoencoder(AutoencoderConfig(found.miniature, 40, DECODER)))
    side = autoencoder.token_pixels
    for rows, columns in SIZES:
        with torch.no_grad():
            latent = autoencoder.encode(torch.rand(1, 3, rows * side, columns * side))
            assert latent.shape == (1, 32, rows, columns)
            assert autoencoder.decode(latent).shape == (1, 3, rows * side, columns * side)
    with pytest.raises(ValueError, match=f"multiples of {side}"):
        autoencoder.encode(torch.rand(1, 3, side, side + 1))
    autoencoder.decode(autoencoder.encode(torch.rand(1, 3, 5 * side, 3 * side))).square().mean().backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.fixture(scope="module")
def trained(found, base, tmp_path_factory):
    """The file that a miniature of every stage makes of the base model."""
    folder, out = base[0], tmp_path_factory.mktemp("trained")
    data = {**miniatures.SCENES, "size": 2 * found.miniature.token_pixels}
    held_out = {**miniatures.HELD_OUT, "size": data["size"]}
    config = miniatures.autoencoder(folder, steps=2)
    autoencoder_command.run({**config, "data": data, "held_out": held_out}, out, None)
    config = miniatures.generator(folder, out, steps=2)
    config["generator"]["query_grid"] = [4, 6]
    objective = {"repa": 0.1, "caption": 0.1}
    if found.caption is None:
        with pytest.raises(TrainingError, match=f"objective.caption is for .*; leave it out for {found.name}"):
            generator_command.run({**config, "data": {**data, "count": 8}, "objective": objective}, out, None)
        objective.pop("caption")
    generator_command.run({**config, "data": {**data, "count": 8}, "objective": objective}, out / "whole", None)
    return out / "whole" / generator_command.FILE


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_pictures_are_drawn(found, trained, decoding, tokens_per_step):
    model = vgt.load(trained, dtype=torch.float32)
    assert (model.config.family, model.config.generator.grid) == (found.name, (4, 6))
    side = model.config.token_pixels
    size = {"height": 2 * side, "width": 5 * side, "flow": vgt.FlowSettings(steps=2)}
    drawn = {"decoding": decoding, "tokens_per_step": tokens_per_step, **size}
    latent = model.generate(["a red circle", "two blue stars"], **drawn)
    assert latent.shape == (2, 32, 2, 5) and latent.isfinite().all()
    assert model.decode(latent).shape == (2, 3, 2 * side, 5 * side)
    assert torch.equal(latent, model.generate(["a red circle", "two blue stars"], **drawn))
    # What is there already is read, and what follows from it is drawn.
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1] = True
    again = model.generate(["a red circle", "two blue stars"], latent=latent, mask=mask, **drawn)
    assert torch.equal(again[..., ~mask], latent[..., ~mask])
    with pytest.raises(ValueError, match=f"at most {6 * side}x{4 * side}"):
        model.generate("a red circle", **{**size, "height": 5 * side})


def published(model, found):
    """A model's state dict in the published layout."""
    state = {}
    heads = model.config.generator.flow_head.depth
    rules = list(reversed(found.published_names))
    for name, tensor in model.autoencoder.state_dict().items():
        if name.startswith("vision_tower."):
            old, new = next(rule for rule in rules if name.startswith(rule[1]))
            tensor = found.write_tensor(name, tensor, model.config.autoencoder.vision)
            state["vgt_ae." + old + name[len(new) :]] = tensor
        else:
            state["vgt_ae." + name.replace("pixel_decoder.", "decoder.")] = tensor
    language = model.config.generator.language
    rows = [language.heads * language.head_width] + [language.kv_heads * language.head_width] * 2
    prefix = next(old for old, new in rules if new == "language_model.")
    for name, tensor in model.generator.state_dict().items():
        if name.startswith("language_model."):
            at = prefix + name.removeprefix("language_model.")
            if "qkv_proj" in at:
                state.update({at.replace("qkv_", f"{p}_"): t for p, t in zip("qkv", tensor.split(rows))})
            elif "gate_up_proj" in at:
                state.update({at.replace("gate_up_", f"{p}_"): t for p, t in zip(("gate", "up"), tensor.chunk(2))})
            else:
                state[at] = tensor
        elif name.startswith("flow_head.modulation."):
            width = model.generator.flow_head.width
            parts = tensor.split([3 * width] * heads + [2 * width])
            at = [f"res_blocks.{block}" for block in range(heads)] + ["final_layer"]
            kind = name.rpartition(".")[2]
            state.update({f"image_head.net.{a}.adaLN_modulation.1.{kind}": t for a, t in zip(at, parts)})
        else:
            for new, old in (
                ("position_queries.queries", "adaptive_metaquery.max_metaquery"),
                ("position_queries.positions", "adaptive_metaquery.pos_encoding.grid_embed"),
                ("flow_head.time_embed.", "image_head.net.time_embed.mlp."),
                ("flow_head.blocks.", "image_head.net.res_blocks."),
                ("flow_head.output_proj.", "image_head.net.final_layer.linear."),
                ("flow_head.", "image_head.net."),
            ):
                if name.startswith(new):
                    name = old + name[len(new) :]
                    break
            state[name] = tensor
    return state


def test_a_model_is_converted_and_loaded_again(found, trained, base, tmp_path):
    """The same model in the published layout, and in one file made from that, has the same weights and draws the same.

    To rounding: some processors' products depend on where in memory a tensor lies.
    """
    model = vgt.load(trained, dtype=torch.float32)
    folder = tmp_path / "published"
    (folder / "base").mkdir(parents=True)
    for path in (base[0] / "base").glob("*.json"):
        (folder / "base" / path.name).write_bytes(path.read_bytes())
    torch.save({"state_dict": published(model, found)}, folder / "iter_1.pth")
    convert(folder, tmp_path / "one.safetensors")
    side = model.config.token_pixels
    settings = {"height": side, "width": 2 * side, "flow": vgt.FlowSettings(steps=2)}
    expected = model.generate("a red circle", **settings)
    for source in (folder, tmp_path / "one.safetensors"):
        again = vgt.load(source, dtype=torch.float32)
        assert again.config == model.config
        for part, same in ((again.generator, model.generator), (again.autoencoder, model.autoencoder)):
            state, wanted = part.state_dict(), same.state_dict()
            assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
        torch.testing.assert_close(again.generate("a red circle", **settings), expected, rtol=0, atol=1e-4)
        pixels = torch.rand(1, 3, side, 2 * side)
        torch.testing.assert_close(again.encode(pixels), model.encode(pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_patches_of_a_token_are_read_off_the_merger(found, language, merge):
    vision = replace(found.miniature, merge=merge)
    tensors = vision.build(language.width, device="meta").state_dict()
    table = found.hub_config(vision, language, dict.fromkeys(found.special_tokens, 1))["vision_config"]
    assert found.read_vision(Sizes(tensors), table).token_pixels == vision.token_pixels
    with pytest.raises(LayoutError, match="the tensor joining has 7 numbers, which are no square of patches of 3"):
        merge_of(Sizes({"joining": torch.empty(7)}), "joining", 3)


def test_missing_tensors_of_a_base_model_are_named(found, base, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in (base[0] / "base").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base[0] / "base" / "model.safetensors")
    for ours in ("language_model.layers.1.mlp.down_proj.weight", "language_model.norm.weight"):
        left = {name: tensor for name, tensor in tensors.items() if name != hub_name(ours, found.name)}
        assert len(left) < len(tensors)
        save_file(left, tmp_path / "model.safetensors")
        with pytest.raises(TrainingError, match=ours.partition(".")[2] + ".*missing"):
            load_base(tmp_path)


def test_a_base_model_that_nothing_reads_is_refused(base, tmp_path, monkeypatch):
    for path in (base[0] / "base").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "vlm_9"}')
    monkeypatch.setattr("vgt.families.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"'vlm_9', which .*\.$"):
        load_base(tmp_path)


@pytest.mark.parametrize("grid", [[12, 20], (5, 5), 7])
def test_a_query_grid_need_not_be_square(grid):
    found = family(NAMES[0])
    config = checkpoint_of(found).config.to_dict()
    config["generator"]["query_grid"] = grid
    read = ModelConfig.from_dict(json.loads(json.dumps(config)))
    assert read.generator.grid == (tuple(grid) if not isinstance(grid, int) else (grid, grid))
    generator = Generator(read.generator, found.name, device="meta")
    assert generator.position_queries.queries.shape[2:] == read.generator.grid
