"""VGT-AR: walks a plan. The only place where prompt, language model, position queries and flow head meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import LATENT_CHANNELS, GeneratorConfig
from ..families import family as find_family
from ..networks.distilled_head import DistilledHead
from ..networks.flow_head import FlowHead
from ..networks.position_queries import PositionQueries
from ..prompt import PromptTokenizer
from ..sampling import SamplingSettings
from .control import Change, Region, cfg_scales, check_changes, prompt_mixes
from .flow import FlowSampler, FlowSettings
from .graphs import GraphCache
from .order import draw_order
from .plan import cut_groups, make_plan
from .record import RunRecord
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

    def __init__(
        self,
        config: GeneratorConfig,
        family: str,
        token_pixels: int | None = None,
        *,
        operations=nn,
        head_operations=None,
        device=None,
        dtype=None,
    ):
        """token_pixels: side in pixels of a token; None is what the family's published models have.

        head_operations: layers of the flow head; None are those of the rest.
        """
        super().__init__()
        found = find_family(family)
        width = config.language.width
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.family = family
        self.counts_padding = found.counts_padding
        self.token_pixels = token_pixels or found.vision_config().token_pixels
        self.dtype = dtype or torch.get_default_dtype()
        self.language_model = found.language_model(config.language, operations=operations, **factory)
        self.position_queries = PositionQueries(width, config.grid, **factory)
        self.image_in_projector = operations.Linear(LATENT_CHANNELS, width, **factory)
        self.image_out_projector = operations.Linear(width, width, **factory)
        head_operations = head_operations or operations
        self.flow_head = FlowHead(config.flow_head, width, operations=head_operations, **factory)
        self.distilled_head: DistilledHead | None = None
        if config.distilled_head is not None:
            self.distilled_head = DistilledHead(config.distilled_head, width, operations=head_operations, **factory)
        self.graphs = GraphCache()

    def head(self, flow: FlowSettings) -> FlowHead:
        """The head that the settings' solver asks for. ValueError where the model has none."""
        if flow.solver != "distilled":
            return self.flow_head
        if self.distilled_head is None:
            raise ValueError(
                "This model has no distilled flow head; choose another solver, or load a head made for it."
            )
        return self.distilled_head


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
    regions: Sequence[Region] = (),
    changes: Sequence[Change] = (),
    order_map: Tensor | None = None,
    stop_at: float = 1.0,
    record: RunRecord | None = None,
    device: torch.device | str | None = None,
    graphs: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Tensor:
    """Draw one image a prompt.

    Args:
        prompts, negative: text; one negative serves all prompts. None is the published unconditional prompt.
        settings: how; None, and what is open in it, are the published settings. Height and width are multiples of a
            token's pixels, at most as many tokens as the model's query grid has.
        noise: [B, h*w, steps, 32] by token place, row-major; index 0 is the start, i the noise of step i, also of a
            token that takes fewer steps. Drawn from the seed on the CPU when None.
        latent, mask: [B, 32, h, w] and bool [h, w], given together: only places where mask is True are drawn; the
            others are read by the model first and come back bit for bit. Without a mask, what is zero is drawn. Where
            the known places are those that a run of these settings draws first, the run goes on as if it had never
            been interrupted.
        batch_index: which images of the seed's sequence to draw, 0, 1, 2 … when None.
        regions: prompts of their own for parts of the picture; see control.py.
        changes: of prompt or cfg in the course of the run, in their order; see control.py.
        order_map: [h, w]; the brightest tokens are drawn first, equal ones in the order of the settings.
        stop_at: the share of the tokens to draw at which the run ends, with zeros where nothing is drawn yet.
        record: filled in as the run goes, for a picture of it.
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
    h, w = height // generator.token_pixels, width // generator.token_pixels
    batch = len(prompts)
    head = generator.head(flow)

    if not 0 < stop_at <= 1:
        raise ValueError(f"stop_at is {stop_at}; it must lie between 0 (not included) and 1.")
    check_changes(changes)
    order_seed = settings.seed if settings.order_seed is None else settings.order_seed
    drawn, known, given = draw_order(h, w, settings.order, order_seed, order_map), [], 0
    if latent is not None:
        mask = _check_repaint(latent, mask, batch, h, w)
        wanted = mask.flatten().tolist()
        if not any(wanted):
            return latent.to(device, torch.float32)
        given = _leading_groups(cut_groups(drawn, settings.tokens_per_step, settings.grouping), wanted)
        if not given:
            known = [place for place in drawn if not wanted[place]]
            drawn = [place for place in drawn if wanted[place]]
    groups = cut_groups(drawn, settings.tokens_per_step, settings.grouping)
    shares = _shares(groups, len(known), h * w)
    scales = cfg_scales(published_scales(cfg, settings.cfg_schedule, len(groups)), shares, changes)
    scales = [1.0 if share >= settings.cfg_end else scale for scale, share in zip(scales, shares)]
    texts, mixes = prompt_mixes((h, w), groups, shares, regions, changes)
    asked = [prompt if text is None else text for text in texts for prompt in prompts]
    text = tokenizer(asked, _negatives(negative, batch) if max(scales) > 1 else None)
    plan = make_plan(
        drawn,
        settings.tokens_per_step,
        lengths=text.lengths,
        start=len(tokenizer.image_start),
        counts_padding=generator.counts_padding,
        known=known,
        given=given,
        prompts=len(texts),
        mixes=mixes if len(texts) > 1 else (),
        rows=_rows(scales, len(asked), len(text.lengths)),
        flow_steps=[flow.steps_at(share) for share in shares] if flow.final_steps else (),
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
    if record is not None:
        run.spread = run.latents.new_zeros(run.latents.shape[:2])
        record.plan, record.grid = plan, (h, w)
    known = [*known, *(place for group in groups[:given] for place in group)]
    if known:
        run.latents[:, known] = latent.to(run.latents).flatten(2).transpose(1, 2)[:, known]
    inputs = step_inputs(plan, scales, generator.language_model, generator.dtype, device)
    sampler = FlowSampler(
        head,
        flow,
        device,
        generator.dtype,
        counts=plan.flow_steps,
        expecting=generator.flow_head if record is not None and flow.solver == "distilled" else None,
    )
    fresh = TokenStep(generator, plan, sampler, run)

    seen = torch.zeros(h * w, dtype=torch.bool)
    seen[known] = True
    last = _last_step(groups[given:], stop_at) + given
    total = sum(len(group) for group in groups[given : last + 1])
    done = 0
    with _walker(fresh, graphs) as token_step:
        latents = token_step.run.latents.transpose(1, 2).unflatten(2, (h, w))
        for index, (step, own) in enumerate(zip(plan.steps[: last + 1], inputs)):
            first = index == 0
            if index < given:
                token_step.read_first(own, text_embeds) if first else token_step.read(own, step.slot)
                continue
            token_step.first(own, text_embeds) if first else token_step(own, step.slot)
            done += len(step.group)
            if progress is not None:
                seen[list(step.group)] = True
                progress(Progress(done, total, latents, seen.view(h, w)))
        if record is not None:
            record.spread = token_step.run.spread.cpu()
        return latents.clone(memory_format=torch.contiguous_format)


def _leading_groups(groups: list[tuple[int, ...]], wanted: list[bool]) -> int:
    """How many of the first groups are known, where these are all that is known; else 0."""
    known = len(wanted) - sum(wanted)
    for count, group in enumerate(groups):
        if known == 0:
            return count
        if any(wanted[place] for place in group):
            return 0
        known -= len(group)
    return 0


def _shares(groups: list[tuple[int, ...]], known: int, tokens: int) -> list[float]:
    """The share of the picture that is there when each step begins."""
    sizes = [len(group) for group in groups[:-1]]
    return [done / tokens for done in accumulate(sizes, initial=known)]


def published_scales(cfg: float, schedule: str, steps: int) -> list[float]:
    """The guidance scale of each step, as VGT's "linear" or "constant" schedule has it."""
    if schedule == "constant":
        return [cfg] * steps
    return [cfg, *(1 + (cfg - 1) * (steps - index) / steps for index in range(1, steps))]


def _rows(scales: list[float], conditional: int, rows: int) -> tuple[int, ...]:
    """How many rows each step feeds: from where guidance ends for good, the conditional ones are enough."""
    last = max((index for index, scale in enumerate(scales) if scale != 1), default=-1)
    if rows == conditional or last == len(scales) - 1:
        return ()
    return tuple(rows if index <= last else conditional for index in range(len(scales)))


def _last_step(groups: list[tuple[int, ...]], stop_at: float) -> int:
    """The step that brings the drawn tokens to that share of all."""
    ends = list(accumulate(len(group) for group in groups))
    return next(index for index, end in enumerate(ends) if end >= stop_at * ends[-1] - 1e-9)


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
    text = torch.cat((ids, torch.tensor(image_start).expand(rows, -1)), dim=1)
    embed_tokens = generator.language_model.embed_tokens
    text = text.to(embed_tokens.weight.device)  # looked up where the table lies: a few rows move, not the table
    run = RunTensors(
        table=generator.position_queries(*grid, device=device, dtype=dtype).flatten(0, 1),
        noise=noise.to(device, torch.float32),
        latents=torch.zeros(noise.shape[0], noise.shape[1], LATENT_CHANNELS, device=device),
        lengths=torch.tensor(plan.lengths).to(device),
        spread=torch.zeros(len(noise), 0, device=device),
    )
    return run, embed_tokens(text).to(device, dtype)


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
    side = generator.token_pixels
    if height % side or width % side or height < side or width < side:
        raise ValueError(f"The size is {width}x{height}; width and height must be multiples of {side}.")
    rows, columns = generator.config.grid
    if height > rows * side or width > columns * side:
        raise ValueError(f"The size is {width}x{height}; this model draws at most {columns * side}x{rows * side}.")


def _check_repaint(latent: Tensor, mask: Tensor | None, batch: int, h: int, w: int) -> Tensor:
    """The mask: bool [h, w], True where to draw."""
    if latent.shape != (batch, LATENT_CHANNELS, h, w):
        raise ValueError(
            f"The latent is {list(latent.shape)}; for these prompts and this size it must be "
            f"{[batch, LATENT_CHANNELS, h, w]}."
        )
    if mask is None:
        mask = (latent == 0).all(dim=1).any(dim=0)
    if mask.shape != (h, w):
        raise ValueError(f"The mask is {list(mask.shape)}; for this size it must be {h}x{w} tokens.")
    if not torch.isfinite(latent).all():
        raise ValueError("The latent holds NaN or infinite values; encode the image again.")
    return mask
