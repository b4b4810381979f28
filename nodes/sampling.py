"""What VGT AR Sampler does with a LATENT: sizes, masks, batches. The drawing itself is vgt.run.generation."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vgt.config import LATENT_CHANNELS
from ..vgt.run.beginning import Beginning
from ..vgt.run.control import Change, Region
from ..vgt.run.record import RunRecord
from ..vgt.sampling import SamplingSettings
from . import remarks
from .host.drawing import generate
from .host.loading import VGTModel
from .host.notes import Notes
from .host.progress import ProgressReport
from .host.vae import RATIO, check_latent, nearest_multiple, say_ratio

STOPPED = "vgt_stopped"
"""Entry of a LATENT whose run stopped early: the name of the model that draws it."""
BEGINNING = "vgt_beginning"
"""Another one: the LoRAs that were loaded, as the host names them, and what the run keeps for going on."""


def sample(
    model: VGTModel,
    latent: dict | None = None,
    flow_head: SamplingSettings | None = None,
    *,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    batch_size: int,
    denoise: float,
    cfg: float,
    tokens_per_step: int,
    stop_at: float = 1.0,
    regions: tuple[Region, ...] = (),
    schedule: tuple[Change, ...] = (),
    order_map: Tensor | None = None,
    previews: bool = True,
    notes: Notes | None = None,
    **settings,
) -> tuple[dict, Tensor]:
    """The sampler node's work: a LATENT with new samples, its other entries as they came, and pictures of the run
    [B, H, W, 3] in [0, 1].

    A run that stops early leaves in the latent's noise mask what is left to draw.

    width, height, cfg, tokens_per_step: 0 is the model's own, as is all of `flow_head` where that is None. `notes` is
    told what a person should know of the run.

    Raises ValueError, one sentence, for a latent that is not VGT's, holds NaN, or does not fit its mask.
    """
    connected = (
        ("latent", latent, dict),
        ("flow_head", flow_head, SamplingSettings),
        ("regions", regions, tuple),
        ("schedule", schedule, tuple),
        ("order_map", order_map, Tensor),
    )
    for name, value, kind in connected:
        if value is not None and not isinstance(value, kind):  # which the API can send
            raise ValueError(f"{name} is {value!r}; connect a node to it, or nothing.")
    size = {"width": width or None, "height": height or None}
    chosen = SamplingSettings(**size, cfg=cfg or None, tokens_per_step=tokens_per_step or None, **settings)
    chosen = chosen.over(flow_head or SamplingSettings()).filled(model.recommended)
    side = model.token_pixels
    latent = dict(latent or {"samples": None})
    samples = latent["samples"]
    asked = width, height, batch_size
    if samples is not None and _is_empty(latent):
        size, batch_size = _size_of_empty(latent, side)
        chosen = replace(chosen, **size)
        samples = None
        latent.pop(RATIO, None)  # of the empty latent
    if samples is None:
        chosen = _in_whole_tokens(chosen, side)
        grid = chosen.height // side, chosen.width // side
        samples = torch.zeros(batch_size, LATENT_CHANNELS, *grid)
        masks = torch.ones(batch_size, *grid, dtype=torch.bool)
    else:
        check_latent(samples)
        masks = _masks(latent, denoise, chosen.seed, side)
        chosen = replace(chosen, height=samples.shape[2] * side, width=samples.shape[3] * side)
        highest, widest = (tokens * side for tokens in model.patcher.model.config.grid)
        if chosen.height > highest or chosen.width > widest:
            raise ValueError(
                f"The latent is {chosen.width}x{chosen.height} pixels; this model draws at most {widest}x{highest}, so "
                "choose fit 'model size' in VGT Encode, or a smaller picture."
            )

    out = samples.to(torch.float32, copy=True)
    indices = list(latent.get("batch_index") or range(len(samples)))[: len(samples)]
    groups = _rows_by_mask(masks)
    drawn = sum(int(masks[rows[0]].sum()) for rows in groups)
    begun_with = latent.pop(STOPPED, None)
    loras, beginning = latent.pop(BEGINNING, (None, None))
    if loras != model.patcher.patches_uuid:
        beginning = None
    # a copy: the one that came may be read again
    beginning = Beginning() if beginning is None else replace(beginning)
    steering = {
        "regions": [replace(region, prompt=_plain(region.prompt)) for region in regions],
        "changes": [replace(one, prompt=one.prompt and _plain(one.prompt)) for one in schedule],
        "order_map": None if order_map is None else _order_map(order_map, *masks.shape[1:]),
        "stop_at": stop_at,
    }
    pictures = [torch.zeros(1, 1, 3)] * len(samples)
    notes = notes or Notes()
    prompts = [_plain(prompt), *(one.prompt for one in (*steering["regions"], *steering["changes"]) if one.prompt)]
    for remark in (
        *remarks.on_prompts(model.tokenizer, prompts, _plain(negative_prompt), chosen),
        *remarks.on_values(chosen),
        *remarks.on_steering(steering["regions"], masks.shape[1:], begun_with, model.name),
        *remarks.on_latent(asked, latent["samples"] is not None, chosen, len(out), drawn, denoise),
    ):
        notes.add(remark)
    progress = ProgressReport(model, math.ceil(drawn * stop_at), previews)
    for rows in groups:
        mask, record = masks[rows[0]], RunRecord()
        if mask.any():
            out[rows] = generate(
                model,
                progress,
                [_plain(prompt)] * len(rows),
                _plain(negative_prompt) if negative_prompt.strip() else None,
                chosen,
                latent=None if mask.all() else out[rows],
                mask=None if mask.all() else mask,
                batch_index=[indices[row] for row in rows],
                record=record,
                beginning=beginning if len(groups) == 1 else None,
                **steering,
            ).to(out)
            for index, row in enumerate(rows):
                pictures[row] = _picture(record, index)
    notes.done()
    latent["samples"] = out
    say_ratio(latent, side)
    if stop_at < 1:
        left = (out == 0).all(dim=1, keepdim=True)
        latent["noise_mask"] = left.float().repeat_interleave(side, 2).repeat_interleave(side, 3)
        latent[STOPPED] = model.name
        latent[BEGINNING] = model.patcher.patches_uuid, beginning
    elif begun_with:
        del latent["noise_mask"]  # nothing is left
    size = max((picture.shape for picture in pictures), key=lambda shape: shape[0])
    return latent, torch.stack([picture.expand(size) for picture in pictures])


def _order_map(order_map: Tensor, h: int, w: int) -> Tensor:
    """MASK [B, H, W] or IMAGE [B, H, W, C] → the mean brightness of each token of the first: [h, w]."""
    brightness = order_map[0].float().cpu()
    if brightness.ndim == 3:
        brightness = brightness.mean(-1)
    return F.adaptive_avg_pool2d(brightness[None, None], (h, w))[0, 0]


def _picture(record: RunRecord, index: int) -> Tensor:
    picture = record.picture(index)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size[::-1], 3) / 255


def _in_whole_tokens(settings: SamplingSettings, token_pixels: int) -> SamplingSettings:
    width, height = (nearest_multiple(side, token_pixels) for side in (settings.width, settings.height))
    if (width, height) != (settings.width, settings.height):
        logging.info(f"VGT: drawing {width}x{height}, the whole tokens nearest to {settings.width}x{settings.height}.")
    return replace(settings, width=width, height=height)


def _is_empty(latent: dict) -> bool:
    """An empty latent of any model, as the stock Empty Latent Image makes it, says only size and batch."""
    return "noise_mask" not in latent and not latent["samples"].any()


def _size_of_empty(latent: dict, token_pixels: int) -> tuple[dict[str, int], int]:
    """Width and height in pixels, and the batch."""
    samples = latent["samples"]
    if samples.ndim != 4:
        raise ValueError(f"The latent has {samples.ndim} dimensions; VGT draws still images, use an image latent.")
    batch, channels, h, w = samples.shape
    ratio = latent.get(RATIO) or (token_pixels if channels == LATENT_CHANNELS else 8)
    return {"width": w * ratio, "height": h * ratio}, batch


def _masks(latent: dict, denoise: float, seed: int, token_pixels: int) -> Tensor:
    """Which tokens to draw: bool [B, h, w].

    A token is drawn when any pixel of its cell is masked (over one half); `denoise` then keeps that share of them,
    chosen by the seed.
    """
    batch, _, h, w = latent["samples"].shape
    mask = latent.get("noise_mask")
    if mask is None:
        masks = torch.ones(batch, h, w, dtype=torch.bool)
    else:
        mask = _fit_to_tokens(mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu(), h, w, token_pixels)
        masks = F.adaptive_max_pool2d(mask, (h, w))[:, 0] > 0.5
        masks = masks.repeat(math.ceil(batch / len(masks)), 1, 1)[:batch]
    if denoise < 1:
        rank = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed)).view(h, w)
        for index, one in enumerate(masks):
            ranks = rank[one].sort().values
            keep = round(denoise * len(ranks))
            masks[index] = one & (rank < ranks[keep]) if keep < len(ranks) else one
    return masks


def _fit_to_tokens(mask: Tensor, h: int, w: int, token_pixels: int) -> Tensor:
    """[B, 1, H, W] in pixels → the same, cut or padded as its image was for a latent of h x w tokens.

    A VAE cuts what exceeds whole tokens off both ends, and VGT Encode may pad at the far end instead. A mask of any
    other size stays as it is, to be scaled.
    """
    for dim, tokens in ((-2, h), (-1, w)):
        size, pixels = mask.shape[dim], tokens * token_pixels
        if 0 < size - pixels < token_pixels:
            mask = mask.narrow(dim, (size - pixels) // 2, pixels)
        elif 0 < pixels - size < token_pixels:
            mask = F.pad(mask, (0, pixels - size) if dim == -1 else (0, 0, 0, pixels - size))
    return mask


def _plain(text: str) -> str:
    """Text with halves of surrogate pairs, which no tokenizer takes, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _rows_by_mask(masks: Tensor) -> list[list[int]]:
    """Rows of equal masks: they share a plan, so they are drawn together."""
    groups: dict[bytes, list[int]] = {}
    for row, mask in enumerate(masks):
        groups.setdefault(mask.numpy().tobytes(), []).append(row)
    return list(groups.values())
