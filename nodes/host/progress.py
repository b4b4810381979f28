"""What a person sees of a run: the bar, the picture so far; and Cancel."""

from __future__ import annotations

import logging
import sys
import time

import comfy.model_management as memory
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ...vgt.config import LATENT_CHANNELS
from ...vgt.latent_rgb import colours
from ...vgt.run.generation import Progress
from .loading import VGTModel
from .notes import prompt_server


def _turned_off() -> bool:
    """Whether the person wants no previews. That none is the host's default does not say so; the flag and, in newer
    hosts, the setting do."""
    if args.preview_method != LatentPreviewMethod.NoPreviews:
        return False
    if any(argument.startswith("--preview-method") for argument in sys.argv):
        return True
    queue = getattr(prompt_server(), "prompt_queue", None)
    running = queue.currently_running.values() if queue else ()
    return any(item[3].get("preview_method") == "none" for item in running)


class ProgressReport:
    """Moves the node's bar token by token, shows the picture so far, and lets Cancel through."""

    INTERVAL = 0.5
    """Seconds between previews, at least."""
    SHARE = 0.04
    """Of the run's time that previews may take."""
    SLOW = 0.5
    """Seconds: of a preview by the VAE that took longer, the next are by the latent-to-RGB matrix, if there is one."""

    def __init__(self, model: VGTModel, total: int, previews: bool = True):
        self._wanted = previews and not _turned_off()
        self._bar = comfy.utils.ProgressBar(max(1, total))
        self._total = total
        self._vae = model.vae
        self._sampler = model.patcher
        self._latent_rgb = model.latent_rgb
        self._before = self._done = 0
        self._previews = self._decodes = False
        self._slow = False
        self._began = self._shown = time.monotonic()
        self._spent = self._cost = 0.0
        self._step_done = None

    def begin(self, grid: tuple[int, int], needed: int) -> int:
        """A run of so many tokens and bytes begins; returns the token count to rewind to should it fail."""
        memory.throw_exception_if_processing_interrupted()
        self._before = self._done
        decodes = self._wanted and not self._slow
        self._decodes = decodes and self._vae.make_ready((1, LATENT_CHANNELS, *grid), needed, self._sampler)
        self._previews = self._decodes or (self._wanted and self._latent_rgb is not None)
        return self._before

    def rewind(self, start: int) -> None:
        self._done = start

    def __call__(self, progress: Progress) -> None:
        if progress.latent.is_cuda:  # the device may be one step behind, no more, or Cancel and the bar would lie
            if self._step_done is not None:
                self._step_done.synchronize()
            self._step_done = torch.cuda.Event()
            self._step_done.record()
        memory.throw_exception_if_processing_interrupted()
        self._done = self._before + progress.done
        if self._preview_is_due():
            self._shown = time.monotonic()
            picture = self._picture_or_none(progress)
            if picture is None:
                self._previews = self._wanted = False
                self._bar.update_absolute(self._done)
                return
            self._bar.update_absolute(self._done, preview=("JPEG", picture, min(args.preview_size, max(picture.size))))
            self._cost = time.monotonic() - self._shown
            self._spent += self._cost
            if self._decodes and self._cost > self.SLOW and self._latent_rgb is not None:
                self._decodes, self._slow, self._cost = False, True, 0.0
        else:
            self._bar.update_absolute(self._done)

    def _preview_is_due(self) -> bool:
        """At most twice a second and within its share of the run so far; at the end, not to leave an unfinished one."""
        if not self._previews:
            return False
        if self._done >= self._total:
            return self._spent > 0
        now = time.monotonic()
        within = self._spent + 2 * self._cost <= self.SHARE * (now - self._began)  # this one and the last
        return within and now - self._shown >= self.INTERVAL

    def _picture_or_none(self, progress: Progress) -> Image.Image | None:
        """None where it fails, for want of memory or anything else: a run does not end for a preview."""
        try:
            return self._picture(progress)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if self._decodes and self._latent_rgb is not None:
                logging.warning(f"VGT: previews go on without the VAE, as one by it failed ({reason}).")
                self._decodes, self._slow = False, True
                return self._picture_or_none(progress)
            logging.warning(f"VGT: going on without previews, as one failed ({reason}).")
            return None

    def _picture(self, progress: Progress) -> Image.Image:
        """The first image of the batch, grey where no token is known yet."""
        vae, side, latent = self._vae, self._vae.token_pixels, progress.latent[:1]
        if self._decodes:
            pixels = vae.first_stage_model.decode(latent.to(vae.device, vae.vae_dtype))[0].float().cpu()
        else:
            pixels = F.interpolate(colours(self._latent_rgb, latent), scale_factor=side, mode="bilinear")[0].cpu()
        known = progress.known.repeat_interleave(side, 0).repeat_interleave(side, 1)
        pixels = torch.where(known, pixels, torch.zeros(())).clamp(-1, 1)
        return Image.fromarray(((pixels + 1) * 127.5).round().byte().movedim(0, -1).numpy())
