"""VGT-AR: walks a plan. The only place where prompt, language model, position queries and flow head meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import LATENT_CHANNELS, TOKEN_PIXELS, GeneratorConfig
from ..networks.flow_head import FlowHead, FlowSampler
from ..networks.language_model import LanguageModel
from ..networks.position_queries import PositionQueries
from ..prompt import PromptTokenizer
from ..sampling import SamplingSettings
from .graphs import GraphCache
from .plan import draw_order, make_plan
from .token_step import RunTensors, TokenStep, step_inputs


@dataclass(frozen=True)
class Progress:
    """What a run has drawn so far."""

    done: int
    """Tokens drawn."""
    total: int
    """Tokens to draw."""
    latent: Tensor
    """[B, 32, h, w] float32 on the device; zero where nothing is known yet. It goes on changing: read it at once."""
    known: Tensor
    """bool [h, w] on the CPU: the places that are drawn or were given."""


class Generator(nn.Module):
    """The part of a VGT model that turns prompts into latents.

    It computes in `dtype`, whatever dtype `operations` keep the weights in.
    """

    def __init__(self, config: GeneratorConfig, family: str, *, operations=nn, device=None, dtype=None):
        super().__init__()
        width = config.language.width
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.family = family
        self.dtype = dtype or torch.get_default_dtype()
        self.language_model = LanguageModel(config.language, operations=operations, **factory)
        self.position_queries = PositionQueries(width, config.query_grid, **factory)
        self.image_in_projector = operations.Linear(LATENT_CHANNELS, width, **factory)
        self.image_out_projector = operations.Linear(width, width, **factory)
        self.flow_head = FlowHead(config.flow_head, width, operations=operations, **factory)
        self.graphs = GraphCache()


@torch.no_grad()
def generate(
    generator: Generator,
    tokenizer: PromptTokenizer,
    prompts: str | Sequence[str],
    negative: str | Sequence[str] | None = None,
    settings: SamplingSettings | None = None,
    *,
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    mask: Tensor | None = None,
    batch_index: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    graphs: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Tensor:
    """Draw one image a prompt.

    Args:
        prompts, negative: text; one negative serves all prompts. None is the published unconditional prompt.
        settings: how; None, and what is open in it, are the published settings. Height and width are multiples of 28,
            at most 28 times the model's query grid.
        noise: [B, h*w, steps, 32] by token place, row-major; index 0 is the start, i the noise of step i. Drawn from
            the seed on the CPU when None.
        latent, mask: [B, 32, h, w] and bool [h, w], given together: only places where mask is True are drawn; the
            others are read by the model first and come back bit for bit.
        batch_index: which images of the seed's sequence to draw, 0, 1, 2 … when None.
        device: where to compute; the device of the weights when None.
        graphs: replay the steps as CUDA graphs where the weights lie on a CUDA device: the same, with fewer launches.
        progress: called after each step; what it raises ends the run.

    Returns the latent [B, 32, h, w], float32, on `device`. Raises ValueError when an argument is out of range.
    Source: arXiv 2511.23469, and the sampling loop of the published implementation.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = (settings or SamplingSettings()).filled()
    height, width, cfg, flow = settings.height, settings.width, settings.cfg, settings.flow
    device = torch.device(device or generator.image_in_projector.weight.device)
    _check(generator, prompts, height, width)
    h, w = height // TOKEN_PIXELS, width // TOKEN_PIXELS
    batch = len(prompts)

    guided = cfg > 1
    text = tokenizer(prompts, _negatives(negative, batch) if guided else None)
    order_seed = settings.seed if settings.order_seed is None else settings.order_seed
    places = draw_order(h * w, settings.order, order_seed)
    drawn, known = places, []
    if latent is not None:
        _check_repaint(latent, mask, batch, h, w)
        wanted = mask.flatten().tolist()
        drawn = [place for place in places if wanted[place]]
        known = [place for place in places if not wanted[place]]
        if not drawn:
            return latent.to(device, torch.float32)
    plan = make_plan(
        drawn,
        settings.tokens_per_step,
        family=generator.family,
        lengths=text.lengths,
        start=len(tokenizer.image_start),
        known=known,
        decoding=settings.decoding,
        grouping=settings.grouping,
    )
    positions = plan.positions()
    if positions.max() >= generator.config.language.max_positions:
        raise ValueError(
            f"The prompt and the image take {int(positions.max()) + 1} positions, but this model has "
            f"{generator.config.language.max_positions}; shorten the prompt or draw a smaller image."
        )
    if noise is None:
        noise = draw_noise(settings.seed, range(batch) if batch_index is None else batch_index, h * w, flow.steps)
    elif noise.shape != (batch, h * w, flow.steps, LATENT_CHANNELS):
        raise ValueError(
            f"noise is {list(noise.shape)}; for {batch} images of {h * w} tokens and {flow.steps} steps it must be "
            f"{[batch, h * w, flow.steps, LATENT_CHANNELS]}."
        )

    run, text_embeds = run_tensors(generator, plan, text.ids, tokenizer.image_start, (h, w), noise, device)
    if known:
        run.latents[:, known] = latent.to(run.latents).flatten(2).transpose(1, 2)[:, known]
    scales = [cfg] * len(plan.steps)
    if settings.cfg_schedule == "linear":
        scales[1:] = [1 + (cfg - 1) * (len(scales) - index) / len(scales) for index in range(1, len(scales))]
    inputs = step_inputs(plan, scales, generator.config.language, generator.dtype, device)
    fresh = TokenStep(generator, plan, FlowSampler(generator.flow_head, flow, device, generator.dtype), run)

    seen = torch.zeros(h * w, dtype=torch.bool)
    seen[known] = True
    done = 0
    with _walker(fresh, graphs) as token_step:
        latents = token_step.run.latents.transpose(1, 2).unflatten(2, (h, w))
        for step, own in zip(plan.steps, inputs, strict=True):
            if step is plan.steps[0]:
                token_step.first(own, text_embeds)
            else:
                token_step(own, step.slot)
            done += len(step.group)
            if progress is not None:
                seen[list(step.group)] = True
                progress(Progress(done, len(drawn), latents, seen.view(h, w)))
        return latents.clone(memory_format=torch.contiguous_format)


def draw_noise(seed: int, images: Sequence[int], tokens: int, steps: int) -> Tensor:
    """Standard normal noise [len(images), tokens, steps, 32], float32, on the CPU.

    Image i of a seed has the same noise in every batch: images are drawn one after the other from one generator.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = list(images)
    drawn = {}
    for index in range(max(wanted) + 1):
        one = torch.randn(tokens, steps, LATENT_CHANNELS, generator=generator)
        if index in wanted:
            drawn[index] = one
    return torch.stack([drawn[index] for index in wanted])


def run_tensors(generator, plan, ids, image_start, grid, noise, device) -> tuple[RunTensors, Tensor]:
    """What a run begins with: its tensors, no latent known; and the embedded text [rows, text tokens, D]."""
    rows, dtype = len(ids), generator.dtype
    text = torch.cat((ids, torch.tensor(image_start).expand(rows, -1)), dim=1).to(device)
    run = RunTensors(
        table=generator.position_queries(*grid, device=device, dtype=dtype).flatten(0, 1),
        noise=noise.to(device, torch.float32),
        latents=torch.zeros(noise.shape[0], noise.shape[1], LATENT_CHANNELS, device=device),
        lengths=torch.tensor(plan.lengths).to(device),
    )
    return run, generator.language_model.embed_tokens(text).to(dtype)


@contextmanager
def _walker(fresh: TokenStep, graphs: bool):
    """What does the steps of a run: graphs where they can be had."""
    generator, device = fresh.generator, fresh.run.table.device
    # On CUDA the one kernel whose sums do not depend on how many masked slots there are, so that graphs change nothing.
    kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels) if device.type == "cuda" else nullcontext():
        if graphs and generator.graphs.usable(generator, fresh.plan, device):
            with generator.graphs.borrow(fresh) as graphed:
                yield graphed
        else:
            fresh.allocate(fresh.plan.slots)
            yield fresh


def _negatives(negative: str | Sequence[str] | None, batch: int) -> list[str | None]:
    negatives = [negative] * batch if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != batch:
        raise ValueError(f"There are {len(negatives)} negative prompts for {batch} prompts; give one, or as many.")
    return negatives


def _check(generator: Generator, prompts: list[str], height: int, width: int) -> None:
    if not prompts:
        raise ValueError("There is no prompt; give at least one (it may be empty).")
    if height % TOKEN_PIXELS or width % TOKEN_PIXELS or height < TOKEN_PIXELS or width < TOKEN_PIXELS:
        raise ValueError(f"The size is {width}x{height}; width and height must be multiples of {TOKEN_PIXELS}.")
    limit = generator.config.query_grid * TOKEN_PIXELS
    if height > limit or width > limit:
        raise ValueError(f"The size is {width}x{height}; this model draws at most {limit}x{limit}.")


def _check_repaint(latent: Tensor, mask: Tensor | None, batch: int, h: int, w: int) -> None:
    if mask is None or mask.shape != (h, w):
        raise ValueError(f"A latent needs a mask of {h}x{w} tokens that says which of them to draw.")
    if latent.shape != (batch, LATENT_CHANNELS, h, w):
        raise ValueError(
            f"The latent is {list(latent.shape)}; for these prompts and this size it must be "
            f"{[batch, LATENT_CHANNELS, h, w]}."
        )
    if not torch.isfinite(latent).all():
        raise ValueError("The latent holds NaN or infinite values; encode the image again.")
