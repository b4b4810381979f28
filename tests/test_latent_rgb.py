"""The colours of tokens from their latents, and the model files that hold the matrix."""

import json

import pytest
import torch
from PIL import Image

import drawn
import vgt
from graphs import FIXTURES
from vgt.__main__ import main
from vgt.evaluation.drawn_scenes import drawing_images
from vgt.files.checkpoint import CheckpointError
from vgt.files.reading import convert, read_checkpoint
from vgt.files.single_file import LATENT_RGB_KEY, from_single_file
from vgt.latent_rgb import colours, fit
from vgt.scenes.drawings import Drawings


def test_a_linear_relation_is_found():
    seeded = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 32, 3, 5, generator=seeded)
    latents -= latents.mean(1, keepdim=True)  # as those of the model are
    weight, bias = torch.randn(3, 32, generator=seeded) / 8, torch.tensor([0.5, -0.25, 0.0])
    wanted = torch.einsum("oc,bchw->bohw", weight, latents) + bias[:, None, None]
    pixels = ((wanted + 1) / 2).repeat_interleave(14, 2).repeat_interleave(14, 3)
    matrix = fit([(latents[:2], pixels[:2]), (latents[2:], pixels[2:])])
    torch.testing.assert_close(colours(matrix, latents), wanted, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="15 tokens"):
        fit([(latents[:1], pixels[:1])])


def test_the_bundled_models_colours_are_near_what_its_decoder_draws(bundled_model, tmp_path):
    """Far nearer than one grey for all tokens."""
    model, drawings = vgt.load(bundled_model), Drawings(drawn.real_folder(tmp_path))
    latents = model.encode(torch.stack(list(drawing_images(drawings, 10, model.recommended.width))))
    decoded = torch.nn.functional.adaptive_avg_pool2d(model.decode(latents), latents.shape[2:])
    error = (colours(read_checkpoint(bundled_model).latent_rgb, latents) - decoded).square().mean()
    grey = (decoded.mean((0, 2, 3), keepdim=True) - decoded).square().mean()
    assert error < 0.25 * grey


def test_the_command_writes_a_model_with_a_matrix_and_the_same_weights(tmp_path, capsys):
    model, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    convert(FIXTURES / "internvl3", model)
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        size = (120, 90)
        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.byte().numpy()).save(tmp_path / "pictures" / f"{index}.png")
    command = ["latent-rgb", str(model), str(tmp_path / "pictures"), str(out)]
    assert main(command) == 0
    assert "3 pictures" in capsys.readouterr().out
    before, after = read_checkpoint(model), read_checkpoint(out)
    assert before.latent_rgb is None and len(after.latent_rgb) == 33
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    assert main(["latent-rgb", str(model), str(tmp_path / "none"), str(out), "--force"]) == 1
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize("value", [1, [[0, 0, 0]] * 32, [[0, 0]] * 33, [[0, 0, "x"]] * 33, [[0, 0, float("nan")]] * 33])
def test_a_matrix_that_is_none_is_refused(tmp_path, value):
    path = tmp_path / "model.safetensors"
    convert(FIXTURES / "internvl3", path)
    config = json.dumps(read_checkpoint(path).config.to_dict())
    with pytest.raises(CheckpointError, match=r"model.safetensors holds a vgt.latent_rgb that cannot be used"):
        from_single_file(path, {"vgt.config": config, LATENT_RGB_KEY: json.dumps(value)}, {})
