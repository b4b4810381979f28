"""Every file a model may come in, and what is said of those that are none; test_torch_file.py has the pickles."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import vgt
from checkpoints import full_state, make_folder, reference, refused, same, tokenizer_state
from recorded import FIXTURES
from vgt.files.reading import convert, read_checkpoint

# Layouts


def test_ema_weights_win(family, folder):
    state = full_state(family)
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    ema = {"module." + name: tensor.clone() for name, tensor in state.items()} | {"steps": torch.tensor(5000)}
    torch.save({"meta": {"iter": 1}, "state_dict": raw, "ema_state_dict": ema}, folder / "iter_1.pth")
    same(read_checkpoint(folder), reference(family))


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_tokenizer_alone(family, folder, key):
    state = tokenizer_state(family)
    torch.save({key: state} if key else state, folder / "plain.pth")
    plain = read_checkpoint(folder)
    assert plain.config.generator is None and plain.config.autoencoder == reference(family).config.autoencoder
    assert vgt.load(folder).generator is None
    teachers = {"teacher.x": torch.ones(3), "teacher_mlp1.0.weight": torch.ones(3), "vit_mean": torch.ones(3)}
    torch.save({key: state | teachers} if key else state | teachers, folder / "taught.pth")
    same(read_checkpoint(folder / "taught.pth"), plain)


def test_published_names_in_safetensors(family, folder):
    state = {name: tensor.contiguous().clone() for name, tensor in full_state(family).items()}
    save_file(state, folder / "model.safetensors")
    same(read_checkpoint(folder), reference(family))
    same(read_checkpoint(folder / "model.safetensors"), reference(family))


@pytest.mark.parametrize("kept", ["lmm.language_model.", "lmm.model.language_model."])
def test_one_copy_of_qwens_language_model_is_enough(kept, tmp_path):
    folder, state = make_folder("qwen2_5_vl", tmp_path / "model"), full_state("qwen2_5_vl")
    both = ("lmm.language_model.", "lmm.model.language_model.")
    assert all(any(name.startswith(prefix) for name in state) for prefix in both)
    left = {name: t for name, t in state.items() if name.startswith(kept) or not name.startswith(both)}
    assert len(left) < len(state)
    torch.save({"state_dict": left}, folder / "iter_1.pth")
    same(read_checkpoint(folder), reference("qwen2_5_vl"))


def test_parameters_views_and_shared_storages(family, folder):
    state = full_state(family)
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    shared, begin = {}, 0
    for name, tensor in state.items():
        shared[name] = whole[begin : begin + tensor.numel()].view(tensor.shape)
        begin += tensor.numel()
    name = "image_out_projector.weight"
    shared[name] = torch.nn.Parameter(shared[name].T.contiguous().T)
    assert not shared[name].is_contiguous()
    extra = torch.nn.Parameter(shared["image_in_projector.weight"])
    extra.note = "frameworks hang attributes on parameters"
    shared["image_in_projector.weight"] = extra
    torch.save({"state_dict": shared}, folder / "iter_1.pth")
    same(read_checkpoint(folder), reference(family))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weights_are_loaded_in_any_dtype(family, folder, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in tokenizer_state(family).items()}, folder / "ae.pth")
    found = vgt.load(folder, dtype=torch.float32).autoencoder.state_dict()
    for name, tensor in vgt.load(FIXTURES / family, dtype=torch.float32).autoencoder.state_dict().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=1e-3)


# Folders


def test_full_model_wins_and_several_are_named(family, folder):
    fixtures = FIXTURES / family
    shutil.copy(next(fixtures.glob("vgt_ae_*.pth")), folder / "ae.pth")
    assert read_checkpoint(folder).config.generator is None
    shutil.copy(fixtures / "iter_5000.pth", folder)
    (folder / "broken.pth").write_bytes(b"PK\x03\x04 half a file")
    assert read_checkpoint(folder).path.name == "iter_5000.pth"
    assert read_checkpoint(folder / "ae.pth").config.generator is None
    shutil.copy(fixtures / "iter_5000.pth", folder / "iter_9000.pth")
    refused(folder, "iter_5000.pth", "iter_9000.pth")


def test_a_broken_file_beside_a_tokenizer_is_told(folder, family):
    shutil.copy(next((FIXTURES / family).glob("vgt_ae_*.pth")), folder / "ae.pth")
    (folder / "iter_1.pth").write_bytes((FIXTURES / family / "iter_5000.pth").read_bytes()[:-100])
    with pytest.raises(vgt.CheckpointError, match=r"iter_1.pth cannot be loaded: it is truncated"):
        vgt.load(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        vgt.load(tmp_path / "none.pth")
    with pytest.raises(vgt.CheckpointError, match="holds no weight file"):
        vgt.load(tmp_path)


def test_sizes_of_the_tensors_win_over_the_config(family, folder):
    shutil.copy(FIXTURES / family / "iter_5000.pth", folder)
    config = json.loads((folder / "base/config.json").read_text())
    for section in (config, config.get("llm_config", {}), config["vision_config"]):
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "depth", "vocab_size", "image_size"):
            if key in section:
                section[key] = 7 + section[key]
    (folder / "base/config.json").write_text(json.dumps(config))
    decoder = json.loads((folder / "dc_ae/config.json").read_text()) | {"decoder_block_out_channels": [8] * 6}
    (folder / "dc_ae/config.json").write_text(json.dumps(decoder))
    same(read_checkpoint(folder), reference(family))


def test_configs_of_unknown_models_are_asked_for(family, folder):
    shutil.copy(FIXTURES / family / "iter_5000.pth", folder)
    shutil.rmtree(folder / "base")
    refused(folder / "iter_5000.pth", "base/config.json")


@pytest.mark.parametrize("value", [0, -4, 3, 10**9, 2**60, "four", None, [4], {}, float("nan"), float("inf"), True])
def test_impossible_head_counts_are_refused(value, tmp_path):
    for family, section, key in (
        ("internvl3", "vision_config", "num_attention_heads"),
        ("internvl3", "llm_config", "num_attention_heads"),
        ("internvl3", "llm_config", "num_key_value_heads"),
        ("qwen2_5_vl", "vision_config", "num_heads"),
        ("qwen2_5_vl", "vision_config", "window_size"),
    ):
        folder = make_folder(family, tmp_path / f"{family}-{section}-{key}")
        shutil.copy(FIXTURES / family / "iter_5000.pth", folder)
        config = json.loads((folder / "base/config.json").read_text())
        config[section][key] = value
        (folder / "base/config.json").write_text(json.dumps(config))
        refused(folder / "iter_5000.pth")


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[1]", '{"vision_config": 3}', "[" * 10**6, "\xff", '{"a":' * 10**5], ids=range(7)
)
def test_configs_that_are_none_are_named(text, family, folder):
    shutil.copy(FIXTURES / family / "iter_5000.pth", folder)
    (folder / "base/config.json").write_text(text, encoding="latin-1")
    refused(folder / "iter_5000.pth", "base/config.json")


# Files that do not fit


@pytest.mark.parametrize(
    "name, part",
    [
        ("image_head.net.cond_embed.weight", "generator"),
        ("vgt_ae.down_blocks.1.mlp.3.bias", "VGT-AE"),
        ("vgt_ae.decoder.norm_out.weight", "VGT-AE"),
        ("image_in_projector.bias", "generator"),
    ],
)
def test_tensors_that_do_not_fit_are_named(family, folder, name, part):
    state, own = full_state(family), name.rpartition("net.")[2].removeprefix("vgt_ae.").removeprefix("decoder.")
    path = folder / "iter_1.pth"
    torch.save({"state_dict": {key: tensor for key, tensor in state.items() if key != name}}, path)
    refused(path, own, "missing", part, family)
    torch.save({"state_dict": state | {name + "_more": torch.zeros(2)}}, path)
    refused(path, own + "_more", "unexpected", part, family)
    torch.save({"state_dict": state | {name: torch.zeros(2, 9)}}, path)
    refused(path, own, "misshapen", "[2, 9]", part, family)
    torch.save({"state_dict": state | {name: torch.zeros(state[name].shape, dtype=torch.int32)}}, path)
    refused(path, own, "torch.int32")


def test_half_of_what_is_joined_is_named(folder, family):
    state, path = full_state(family), folder / "iter_1.pth"
    names = [name for name in state if name.endswith("layers.1.self_attn.k_proj.weight")]
    weight = state[names[0]]
    state = {name: tensor for name, tensor in state.items() if name not in names}
    torch.save({"state_dict": state}, path)
    refused(path, "layers.1.self_attn.k_proj.weight", "missing")
    for other in (weight[:, 1:].clone(), torch.tensor(1.0)):
        torch.save({"state_dict": state | dict.fromkeys(names, other)}, path)
        refused(path, "layers.1.self_attn.k_proj.weight", "do not go together")


def test_tensors_of_nothing_known_are_named(family, folder):
    torch.save(full_state(family) | {"somewhere.else": torch.zeros(2)}, folder / "iter_1.pth")
    refused(folder / "iter_1.pth", "somewhere.else", "unexpected", "full VGT model")
    torch.save(tokenizer_state(family) | {"image_head.net.x": torch.zeros(2)}, folder / "ae.pth")
    refused(folder / "ae.pth", "flow_head.x", "unexpected", "VGT-AE")


@pytest.mark.parametrize("index", ["999999999", "-1", "²", "9" * 5000])
def test_a_wild_layer_number_is_no_layer_count(index, folder, family):
    state, path = full_state(family), folder / "iter_1.pth"
    prefix = "lmm.language_model.model." if family == "internvl3" else "lmm.language_model."
    torch.save(state | {f"{prefix}layers.{index}.mlp.up_proj.weight": torch.zeros(2)}, path)
    refused(path, "layers.")
    torch.save(state | {f"image_head.net.res_blocks.{index}.x": torch.zeros(2)}, path)
    refused(path)


def test_too_many_layers_are_refused(folder, family):
    many = {f"image_head.net.res_blocks.{index}.x": torch.zeros(1) for index in range(2000)}
    torch.save(full_state(family) | many, folder / "iter_1.pth")
    refused(folder / "iter_1.pth", "flow_head.blocks", "layers")


def test_files_that_are_no_model(tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    for name, content, words in (
        ("text.pth", b"hello\n" * 9, "not a file written by torch.save"),
        ("empty.pth", b"", "empty"),
        ("image.pth", png, "not a file written by torch.save"),
        ("text.safetensors", b"hello\n" * 9, "not a safetensors file"),
        ("empty.safetensors", b"", "not a safetensors file"),
        ("image.safetensors", png, "not a safetensors file"),
        ("huge.safetensors", struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
        ("deep.safetensors", struct.pack("<Q", 10**6) + b"[" * 10**6, "not a safetensors file"),
        ("model.txt", b"hello", "no model file"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)
    torch.save({"first_stage_model.encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "sd_vae.pth")
    refused(tmp_path / "sd_vae.pth", "not a VGT model")
    save_file({"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "sd_vae.safetensors")
    refused(tmp_path / "sd_vae.safetensors", "not a VGT model")
    for content in ([1, 2], {"epoch": 3}, torch.zeros(3), None):
        torch.save(content, tmp_path / "other.pth")
        refused(tmp_path / "other.pth", "holds no")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "archive.pth", "not one that torch.save wrote")


def test_truncated_files(tmp_path):
    shutil.copytree(FIXTURES / "internvl3", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "whole.safetensors")
    for source in (tmp_path / "model/iter_5000.pth", tmp_path / "whole.safetensors"):
        data = source.read_bytes()
        for length in (1, 7, 30, 4096, len(data) // 2, len(data) - 4097, len(data) - 1):
            path = tmp_path / f"half{source.suffix}"
            path.write_bytes(data[:length])
            refused(path)


def test_the_format_before_1_6_says_what_to_do(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "torch.load", "torch.save")
