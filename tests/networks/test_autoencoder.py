"""VGT-AE against recorded numbers of the published implementation, and its parts against their authorities.

The comparisons with DC-AE and Qwen2.5-VL need `diffusers` and `transformers`, which are development requirements.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import vgt
from vgt.config import AutoencoderConfig, PixelDecoderConfig
from vgt.families.internvl3 import InternVisionConfig, InternVisionTower
from vgt.families.qwen2_5_vl import QwenVisionConfig, QwenVisionTower, window_order
from vgt.networks.autoencoder import Autoencoder, channel_norm
from vgt.networks.pixel_decoder import PixelDecoder

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = {"internvl3": "vgt_ae_internvl3.pth", "qwen2_5_vl": "vgt_ae_qwen25vl.pth"}

INTERN = InternVisionConfig(width=48, depth=2, heads=3, mlp_width=80, grid=6)
QWEN = QwenVisionConfig(width=48, depth=4, heads=3, mlp_width=80, full_attention=(1, 3))
DECODER = PixelDecoderConfig(widths=(16, 32, 32, 32, 64, 64), blocks=(1, 2, 1, 1, 2, 1), head_width=16)


def randomise(module, seed=0):
    """Weights that keep activations of order one, and norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                one = name.endswith("weight") or name.endswith(("ls1", "ls2"))
                parameter.copy_(0.2 * noise + (1 if one else 0))
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return module.eval()


def pixels(batch, height, width, seed=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# Recorded numbers


@pytest.fixture(scope="module", params=FILES)
def recorded(request):
    folder = FIXTURES / request.param
    return vgt.load(folder / FILES[request.param]), load_file(folder / "autoencoder_cases.safetensors")


@pytest.mark.parametrize("case", [0, 1])
def test_encode_gives_the_recorded_latents(recorded, case):
    model, cases = recorded
    latent = model.encode(cases[f"image_{case}"])
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, cases[f"latent_{case}"], atol=1e-4, rtol=0)


def test_decode_gives_the_recorded_pixels(recorded):
    model, cases = recorded
    torch.testing.assert_close(model.decode(cases["decode_latent"]), cases["decode_pixels"], atol=1e-4, rtol=0)


# Pixel decoder


@pytest.mark.parametrize("widths", [(16, 32, 32, 32, 64, 64), (32, 32, 64, 128, 128, 256)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (7, 6)])
def test_pixel_decoder_equals_diffusers(widths, grid):
    from diffusers import AutoencoderDC

    stages = len(widths)
    reference = AutoencoderDC(
        attention_head_dim=16,
        encoder_block_out_channels=(32,) * stages,
        encoder_layers_per_block=(1,) * stages,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_out_channels=widths,
        decoder_layers_per_block=DECODER.blocks,
        decoder_qkv_multiscales=((),) * 3 + ((5,),) * 3,
        upsample_block_type="interpolate",
    ).decoder
    randomise(reference)
    decoder = PixelDecoder(PixelDecoderConfig(widths=widths, blocks=DECODER.blocks, head_width=16))
    decoder.load_state_dict(reference.state_dict())
    latent = torch.randn(2, 32, *grid, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = reference(latent), decoder(latent)
    assert found.shape == (2, 3, 32 * grid[0], 32 * grid[1])
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_pixel_decoder_in_bfloat16_stays_close():
    decoder = randomise(PixelDecoder(DECODER))
    latent = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = decoder(latent)
        found = decoder.bfloat16()(latent.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).std() < 0.05 * expected.std()


def test_channels_that_cannot_be_spread_over_pixels_are_refused():
    with pytest.raises(ValueError, match="cannot upsample 32 channels to 64"):
        PixelDecoder(PixelDecoderConfig(widths=(64, 32), blocks=(1, 1), attention=(False, False)))


# Qwen2.5-VL


def qwen_patches(image, mean, std):
    """Patches of one image in the order and form that transformers' tower takes, cell by cell."""
    image = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    patches = []
    for top in range(0, image.shape[1], 28):
        for left in range(0, image.shape[2], 28):
            for y, x in ((0, 0), (0, 14), (14, 0), (14, 14)):
                patch = image[:, top + y : top + y + 14, left + x : left + x + 14]
                patches.append(torch.stack((patch, patch), dim=1).flatten())
    return torch.stack(patches)


@pytest.mark.parametrize("size", [(28, 28), (112, 112), (140, 84), (84, 224), (252, 196), (448, 308)])
def test_qwen_tower_equals_transformers(size):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(
        depth=QWEN.depth,
        hidden_size=QWEN.width,
        intermediate_size=QWEN.mlp_width,
        num_heads=QWEN.heads,
        out_hidden_size=40,
        fullatt_block_indexes=list(QWEN.full_attention),
    )
    config._attn_implementation = "eager"
    reference = randomise(Qwen2_5_VisionTransformerPretrainedModel(config))
    state = reference.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    tower = QwenVisionTower(QWEN, 40)
    tower.load_state_dict(state)

    images = pixels(2, *size)
    patches = torch.cat([qwen_patches(image, tower.MEAN, tower.STD) for image in images])
    grid = torch.tensor([[1, size[0] // 14, size[1] // 14]] * 2)
    with torch.no_grad():
        expected = reference(patches, grid_thw=grid)
        found = tower(images)
    if not isinstance(expected, torch.Tensor):  # transformers 5
        expected = expected.pooler_output
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 4), (4, 9), (5, 3), (8, 8), (9, 7)])
def test_window_order_holds_every_token_once_in_its_window(rows, columns):
    order, groups = window_order(rows, columns, side=4)
    assert sorted(order.tolist()) == list(range(rows * columns))
    assert len({length for _, length in groups}) <= 4
    windows = [window for count, length in groups for window in [length] * count]
    assert len(windows) == math.ceil(rows / 4) * math.ceil(columns / 4)
    for window in order.split(windows):
        assert len({(token // columns // 4, token % columns // 4) for token in window.tolist()}) == 1


# InternVL3


def intern_reference(state, config, image, mean, std):
    """InternViT, pixel shuffle and mlp1 for one image [3, H, W], written out. Returns [tokens, semantic width]."""

    def layer_norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    rows, columns, side = image.shape[1] // 14, image.shape[2] // 14, config.grid
    image = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    table = state["position_embedding"][0]
    grid = table[1:].reshape(side, side, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)[0]
    sequence = [state["class_embedding"][0, 0] + table[0]]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            embedded = state["patch_embedding.weight"].flatten(1) @ patch.flatten() + state["patch_embedding.bias"]
            sequence.append(embedded + grid[:, row, column])
    x = torch.stack(sequence)
    for layer in range(config.depth):
        name = f"layers.{layer}."
        q, k, v = linear(layer_norm(x, name + "norm1", 1e-6), name + "attn.qkv").chunk(3, dim=-1)
        width = config.width // config.heads
        heads = []
        for head in range(config.heads):
            part = slice(head * width, (head + 1) * width)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
        x = x + state[name + "ls1"] * linear(torch.cat(heads, dim=-1), name + "attn.proj")
        hidden = F.gelu(linear(layer_norm(x, name + "norm2", 1e-6), name + "mlp.fc1"))
        x = x + state[name + "ls2"] * linear(hidden, name + "mlp.fc2")
    grid = x[1:].reshape(rows, columns, -1)
    tokens = [
        torch.cat((grid[y, x], grid[y, x + 1], grid[y + 1, x], grid[y + 1, x + 1]))
        for y in range(0, rows, 2)
        for x in range(0, columns, 2)
    ]
    hidden = F.gelu(linear(layer_norm(torch.stack(tokens), "mlp1.0", 1e-5), "mlp1.1"))
    return linear(hidden, "mlp1.3")


@pytest.mark.parametrize("size", [(28, 28), (84, 84), (56, 140), (196, 112)])
def test_intern_tower_equals_the_written_out_one(size):
    tower = randomise(InternVisionTower(INTERN, 40))
    images = pixels(2, *size)
    with torch.no_grad():
        found = tower(images)
        state = tower.state_dict()
        expected = torch.stack([intern_reference(state, INTERN, image, tower.MEAN, tower.STD) for image in images])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# The whole


def casting(layer):
    """`layer` as a host's classes work: weights of any dtype, cast to the input's dtype when used."""

    class Casting(layer):
        def forward(self, x):
            return layer.forward(copy.deepcopy(self).to(x), x)

    return Casting


class CastingOperations:
    Linear, Conv2d, LayerNorm, RMSNorm = map(casting, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.RMSNorm))


def build(vision, **options):
    return randomise(Autoencoder(AutoencoderConfig(vision, 40, DECODER), **options))


@pytest.mark.parametrize("vision", [INTERN, QWEN])
def test_layers_may_hold_another_dtype_than_they_compute_in(vision):
    held = build(vision, operations=CastingOperations, dtype=torch.bfloat16)
    plain = Autoencoder(AutoencoderConfig(vision, 40, DECODER))
    plain.load_state_dict(held.state_dict())
    with torch.no_grad():
        latent = held.encode(pixels(1, 56, 84))
        torch.testing.assert_close(latent, plain.encode(pixels(1, 56, 84)))
        torch.testing.assert_close(held.decode(latent), plain.decode(latent))
        assert held.encode(pixels(1, 56, 84).bfloat16()).dtype == torch.float32
        assert held.decode(latent.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("vision", [INTERN, QWEN])
def test_a_latent_is_channel_normalised_and_pixels_have_the_images_size(vision):
    model = build(vision)
    with torch.no_grad():
        latent = model.encode(pixels(2, 140, 84))
        assert latent.shape == (2, 32, 5, 3)
        torch.testing.assert_close(latent.mean(1), torch.zeros(2, 5, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(latent.var(1, correction=0), torch.ones(2, 5, 3), atol=1e-3, rtol=0)
        assert model.decode(latent).shape == (2, 3, 140, 84)
        assert model.semantic_features(pixels(2, 140, 84)).shape == (2, 15, 40)


@pytest.mark.parametrize("vision", [INTERN, QWEN])
def test_every_parameter_receives_a_gradient(vision):
    model = build(vision)
    model.decode(model.encode(pixels(1, 140, 84))).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_channel_norm_takes_any_dimension():
    latent = torch.randn(2, 32, 3, 4, dtype=torch.bfloat16)
    expected = F.layer_norm(latent.float().permute(0, 2, 3, 1), (32,), eps=1e-6)
    assert torch.equal(channel_norm(latent, 1), expected.permute(0, 3, 1, 2))
    assert torch.equal(channel_norm(latent.permute(0, 2, 3, 1), -1), expected)


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 4, 56, 56), (1, 3, 60, 56), (1, 3, 56, 30), (1, 3, 0, 28)])
def test_images_of_other_shapes_are_refused(shape):
    model = Autoencoder(AutoencoderConfig(QWEN, 40, DECODER), device="meta")
    with pytest.raises(ValueError, match="must"):
        model.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(32, 4, 4), (1, 16, 4, 4), (1, 32, 0, 4)])
def test_latents_of_other_shapes_are_refused(shape):
    model = Autoencoder(AutoencoderConfig(QWEN, 40, DECODER), device="meta")
    with pytest.raises(ValueError, match="latent must have the shape"):
        model.decode(torch.zeros(shape))
