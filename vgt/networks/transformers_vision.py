"""The vision part of any VLM that the transformers library has, where its image features form a grid."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .transformers_library import LibraryError, build_parts, materialise
from .vision_parts import normalise

_WRAPPED = "vision_tower.vision_model."
"""Up to version 4 some towers lie in a class around them. In our names they do not, so that each version of the library
loads what another wrote."""

_KNOWN = {"pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "kwargs"}
"""What VGT can give to a model's get_image_features."""


@dataclass(frozen=True)
class TransformersVisionConfig:
    """How the library's vision part is to be asked, as measured; and its sizes, of which only memory estimates ask."""

    source: str
    """The whole VLM's config.json."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch: int
    merge: int
    only_grid: int = 0
    """Side in tokens of the only image the tower takes; 0: any whole number of tokens, up and across."""
    only_size: int = 0
    """Side in pixels of that image, to which others are resized."""
    width: int = 1
    depth: int = 1
    heads: int = 1
    mlp_width: int = 1

    @property
    def token_pixels(self) -> int:
        return self.patch * self.merge

    def build(self, semantic_width: int, **options) -> TransformersVision:
        return TransformersVision(self, semantic_width, **options)


class TransformersVision(nn.Module):
    """Vision tower and projection as they are; an image gives one vector a token, in the language model's space."""

    def __init__(
        self, config: TransformersVisionConfig, semantic_width: int, *, operations=nn, device=None, dtype=None
    ):
        """operations has no say here: the layers are the library's. Raises LibraryError."""
        super().__init__()
        self.config = config
        self.model = build_parts(config.source, dtype)[0]
        if torch.device(device or "cpu").type != "meta":
            materialise(self.model, device or "cpu")
        prepare(self.model)
        if any(name.startswith(_WRAPPED) for name, _ in self.model.named_parameters()):
            self.register_state_dict_post_hook(_leave_wrapper_out)
            self.register_load_state_dict_pre_hook(_put_wrapper_back)

    def forward(self, pixels: Tensor) -> Tensor:
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of token_pixels; with only_grid, of that many tokens.
        Returns [B, tokens, semantic_width], row by row.
        """
        config = self.config
        rows, columns = (side // config.token_pixels for side in pixels.shape[2:])
        if config.only_grid and (rows, columns) != (config.only_grid,) * 2:
            side = config.only_grid * config.token_pixels
            raise ValueError(f"This model's vision tower takes images of {side}x{side} alone; resize yours to that.")
        if config.only_size and config.only_size != pixels.shape[2]:
            size = (config.only_size,) * 2
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        for module in self.model.modules():  # a host that loads weights one by one leaves these behind
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.device != pixels.device:
                    setattr(module, name, buffer.to(pixels.device))
        features = image_features(self.model, normalise(pixels, config.mean, config.std))
        return as_rows(features, len(pixels), rows * columns)


def _leave_wrapper_out(_module, state: dict, prefix: str, _metadata) -> None:
    start = f"{prefix}model.{_WRAPPED}"
    for name in [name for name in state if name.startswith(start)]:
        state[f"{prefix}model.vision_tower.{name[len(start) :]}"] = state.pop(name)


def _put_wrapper_back(_module, state: dict, prefix: str, *_arguments) -> None:
    start = f"{prefix}model.vision_tower."
    for name in [name for name in state if name.startswith(start)]:
        state[f"{prefix}model.{_WRAPPED}{name[len(start) :]}"] = state.pop(name)


def vision_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a vision part by the names that TransformersVision has for them."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    _leave_wrapper_out(None, state, "", None)
    return state


def prepare(model: nn.Module) -> None:
    """Let towers with a learned table of positions interpolate it, and pixel shuffles take oblong grids."""
    reached: list[str] = []
    for name, part in model.named_modules():
        if any(name.startswith(one) for one in reached):
            continue
        if name and "interpolate_pos_encoding" in _asked(part):
            part.register_forward_pre_hook(_interpolate, with_kwargs=True)
            reached.append(name + ".")
    connector = getattr(model, "connector", None)
    if hasattr(connector, "pixel_shuffle"):
        connector.pixel_shuffle = _Shuffle(model.config.vision_config.patch_size)


def _interpolate(_module, arguments, options):
    return arguments, {**options, "interpolate_pos_encoding": True}


class _Shuffle:
    """Idefics3's pixel shuffle for a grid that need not be square."""

    def __init__(self, patch: int):
        self.patch, self.columns = patch, 0

    def __call__(self, x: Tensor, scale_factor: int) -> Tensor:
        """[B, rows * columns, C] → [B, rows * columns / s², C s²]: a token's channels are its patches', row by row."""
        side = {"m": scale_factor, "n": scale_factor}
        columns = self.columns // scale_factor
        return rearrange(x, "b (rows m columns n) c -> b (rows columns) (m n c)", columns=columns, **side)


def image_features(model: nn.Module, pixels: Tensor):
    """Ask a VLM of the library for the features of normalised pixels [B, 3, H, W], in the form its code wants.

    Returns what it answers. Raises LibraryError for one that asks for more than pixels and their sizes.
    """
    known = inspect.signature(model.get_image_features).parameters
    if unknown := sorted(
        name for name, one in known.items() if one.default is one.empty and one.kind < 3 and name not in _KNOWN
    ):
        raise LibraryError(f"its image features need {unknown[0]}, which VGT does not know how to give")
    if "image_grid_thw" in known:
        return model.get_image_features(*_patch_rows(pixels, model.config.vision_config))
    if hasattr(model.config, "image_grid_pinpoints"):
        return _untiled(model, pixels)
    if "pixel_attention_mask" in known:
        shuffle = getattr(getattr(model, "connector", None), "pixel_shuffle", None)
        if isinstance(shuffle, _Shuffle):
            shuffle.columns = pixels.shape[3] // shuffle.patch
        # An image of nothing but zeros is taken for padding and dropped.
        return model.get_image_features(pixels.masked_fill(pixels == 0, 1e-6)[:, None])
    sizes = {}
    wanted = known.get("image_sizes")
    if wanted is not None and (wanted.default is wanted.empty or "image_sizes" in _asked(model.vision_tower)):
        sizes["image_sizes"] = torch.tensor([pixels.shape[2:]] * len(pixels), device=pixels.device)
    return model.get_image_features(pixel_values=pixels, **sizes)


def _asked(part: nn.Module):
    return inspect.signature(part.forward).parameters


def _patch_rows(pixels: Tensor, vision) -> tuple[Tensor, Tensor]:
    """Patches as Qwen2-VL and its kin lay them out, cell by merged cell, [patches, C * time * p * p]; and the grids."""
    p, merge, time = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    batch, _, height, width = pixels.shape
    rows, columns = height // p, width // p
    cells = {"m": merge, "n": merge, "p": p, "q": p, "time": time}
    x = repeat(pixels, "b c (rows m p) (columns n q) -> (b rows columns m n) (c time p q)", **cells)
    return x, torch.tensor([[1, rows, columns]] * batch, device=pixels.device)


def _untiled(model: nn.Module, pixels: Tensor) -> Tensor:
    """Of LLaVA's descendants that cut an image into tiles: the features of one tile, which is the whole image."""
    config = model.config
    out = model.vision_tower(pixels, output_hidden_states=True)
    layers = config.vision_feature_layer
    chosen = [out.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    features = torch.cat(chosen, dim=-1)
    if config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    return model.multi_modal_projector(features)


def as_rows(features, batch: int, tokens: int | None) -> Tensor:
    """What a model answered as [batch, tokens, D], None being any number. Raises LibraryError where it is another."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, tuple | list):
        alike = all(isinstance(one, Tensor) for one in features)
        features = torch.stack(list(features)) if alike and len(features) == batch else features[0]
        if isinstance(features, tuple | list):
            features = torch.cat(list(features))
    features = features.reshape(batch, -1, features.shape[-1])
    if tokens is not None and features.shape[1] != tokens:
        raise LibraryError(f"its image features form no grid: {features.shape[1]} vectors for {tokens} tokens")
    return features


@torch.no_grad()
def measure_vision(model: nn.Module, source: str, width: int, mean, std) -> TransformersVisionConfig:
    """Find out how a vision part is to be asked: the pixels of a token, and whether it takes more than one size.

    A part that takes an oblong image of whole tokens takes any; else its own size is tried. Either way each token's
    vector must be that of its place in the image. width: the language model's. Raises LibraryError where it is none of
    these.
    """
    vision = model.config.vision_config
    patch = next((getattr(vision, name) for name in ("patch_size", "spatial_patch_size") if hasattr(vision, name)), 1)
    patch = patch if isinstance(patch, int) else patch[0]
    own = next((getattr(vision, name) for name in ("embed_dim", "hidden_size") if hasattr(vision, name)), width)
    sizes = {"width": own, "mlp_width": getattr(vision, "intermediate_size", 4 * own)}
    for merged in range(1, 9):
        side = patch * merged
        try:
            if _is_grid(model, width, (4, 6), (4 * side, 6 * side)):
                return TransformersVisionConfig(source, mean, std, patch, merged, **sizes)
        except LibraryError as error:
            if "form no grid" not in str(error):
                raise
        except Exception:  # sizes that it does not take end in whatever its code runs into
            continue
    size = getattr(vision, "image_size", None)
    size = size[0] if isinstance(size, tuple | list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise LibraryError("its image features form no grid of whole tokens")
    features = as_rows(image_features(model, torch.zeros(1, 3, size, size, **_like(model))), 1, None)
    grid = round(features.shape[1] ** 0.5)
    if grid**2 != features.shape[1] or not _is_grid(model, width, (grid, grid), (size, size)):
        raise LibraryError("its image features form no grid: they do not stand for squares of the image")
    return TransformersVisionConfig(source, mean, std, size // grid, 1, grid, size, **sizes)


def _is_grid(model: nn.Module, width: int, grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether changing a square of an image changes, most of all, the vector at its place. Raises LibraryError where
    there are not so many vectors."""
    rows, columns = grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(3, *size)
        cells = [(0, 1), (1, columns - 1), (rows // 2, columns // 2), (rows - 1, 0), (rows - 2, columns - 2)]
        images = [image]
        for row, column in cells:
            changed = image.clone()
            top, left = row * size[0] // rows, column * size[1] // columns
            bottom, right = (row + 1) * size[0] // rows, (column + 1) * size[1] // columns
            changed[:, top:bottom, left:right] = torch.randn(3, bottom - top, right - left)
            images.append(changed)
    like = _like(model)
    features = [as_rows(image_features(model, one[None].to(**like)), 1, rows * columns)[0].float() for one in images]
    if features[0].shape[-1] != width:
        raise LibraryError(f"its image features have {features[0].shape[-1]} numbers, its language model {width}")
    moved = torch.stack([(one - features[0]).norm(dim=-1) for one in features[1:]])
    own = moved[range(len(cells)), [row * columns + column for row, column in cells]]
    return int((own > 1.5 * moved.mean(dim=1)).sum()) >= len(cells) - 1


def _like(model: nn.Module) -> dict:
    first = next(model.parameters())
    return {"device": first.device, "dtype": first.dtype}
