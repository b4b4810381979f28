"""Draws the places that a step of the generator's training learns: more of those where a picture changes.

A picture of things on a plain ground has mostly places that its neighbours tell, and that are learnt at once; the rest
takes all the time. Drawing strata in other proportions than they have, and weighing them accordingly, is stratified
sampling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_places(latents: Tensor, places: int, busy: float, lots: Tensor) -> tuple[Tensor, Tensor]:
    """Draw places of pictures, a share of them busy → (places int64 [B, n], how much each counts float32 [B, n]).

    A token is busy that lies further from the mean of its neighbours than the picture's tokens do in the mean. Busy
    places are drawn by lot among themselves, and so are the others. A mean over what is drawn, as it counts, is
    expected to be the mean over all.

    Args:
        latents: [B, 32, h, w]
        places: n, of those that may be drawn
        busy: share of the n; less where a picture has fewer of them, more where it has fewer others
        lots: in [0, 1), [B, h * w]; 2 for a place that is not to be drawn.
    """
    height, width = latents.shape[2:]
    padded = F.pad(latents, (1, 1, 1, 1), mode="replicate")
    rows, columns = slice(1, height + 1), slice(1, width + 1)
    beside = (padded[:, :, :-2, columns], padded[:, :, 2:, columns], padded[:, :, rows, :-2], padded[:, :, rows, 2:])
    change = (latents - sum(beside) / 4).square().mean(1).flatten(1)
    changes, free = change > change.mean(1, keepdim=True), lots < 2
    strata = torch.stack((changes & free, ~changes & free), 1)
    sizes = strata.sum(2)
    first = torch.full_like(sizes[:, 0], round(places * busy))
    first = first.maximum(places - sizes[:, 1]).minimum(sizes[:, 0])
    drawn = torch.stack((first, places - first), 1)
    rank = lots[:, None].where(strata, 3.0).argsort(2).argsort(2)
    taken = strata & (rank < drawn[..., None])
    counts = (taken * (sizes / drawn.clamp(min=1))[..., None]).sum(1) * (places / free.sum(1, keepdim=True))
    chosen = lots.where(taken.any(1), 3.0).argsort(1)[:, :places]
    return chosen, counts.gather(1, chosen)
