"""VGT-AR: walks a plan. The only place where prompt, language model, position queries and flow head meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import LATENT_CHANNELS, GeneratorConfig
from ..families import family as find_family
from ..networks.distilled_head import DistilledHead
from ..networks.flow_head import FlowHead
from ..networks.linear import Layers
from ..networks.position_queries import PositionQueries
from ..prompt import PromptTokenizer
from ..sampling import SamplingSettings
from .beginning import Beginning
from .compiled import check_compiler, lies_on
from .control import Change, Region
from .flow import FlowSampler, FlowSettings
from .graphs import GraphCache
from .planning import check_repaint, plan_run, token_grid
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
        head_operations = head_operations or (Layers if operations is nn else operations)
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
    beginning: Beginning | None = None,
    device: torch.device | str | None = None,
    graphs: bool = True,
    compile: bool = False,
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
        beginning: filled in when the run stops. Given again together with what is drawn, it spares reading that token
            by token. The result is the same, and settings may differ for the rest.
        device: where to compute; the device of the weights when None.
        graphs: replay the steps as CUDA graphs where the weights lie on a CUDA device: the same, with fewer launches.
        compile: the flow head and the language model's layers by torch.compile, at their first call for a shape; each
            where all its weights lie on the device. Takes Triton on CUDA, a C++ compiler elsewhere.
        progress: called after each step; what it raises ends the run.

    Returns the latent [B, 32, h, w], float32, on `device`. Raises ValueError when an argument is out of range, or where
    there is nothing to compile with, RuntimeError when compiling fails.
    Source: arXiv 2511.23469, and the sampling loop of the published implementation.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = (settings or SamplingSettings()).filled()
    flow, batch = settings.flow, len(prompts)
    device = torch.device(device or generator.image_in_projector.weight.device)
    if not prompts:
        raise ValueError("There is no prompt; give at least one (it may be empty).")
    h, w = token_grid(generator, settings)
    head = generator.head(flow)
    if compile:
        check_compiler(device)
    images = range(batch) if batch_index is None else batch_index
    wanted = begun = None
    if latent is not None:
        wanted = check_repaint(latent, mask, batch, h, w)
        if not wanted.any():
            return latent.to(device, torch.float32)
        if beginning is not None:
            begun = beginning.begun(generator, latent, wanted, images)
    planned = plan_run(
        generator,
        tokenizer,
        prompts,
        negative,
        settings,
        wanted,
        regions=regions,
        changes=changes,
        order_map=order_map,
        stop_at=stop_at,
        begun=begun,
    )
    plan, given, last = planned.plan, planned.plan.given, planned.last
    if noise is None:
        noise = draw_noise(settings.seed, images, h * w, flow.steps)
    elif noise.shape != (batch, h * w, flow.steps, LATENT_CHANNELS):
        raise ValueError(
            f"noise is {list(noise.shape)}; for {batch} images of {h * w} tokens and {flow.steps} steps it must be "
            f"{[batch, h * w, flow.steps, LATENT_CHANNELS]}."
        )

    run, text_embeds = run_tensors(generator, plan, planned.ids, tokenizer.image_start, (h, w), noise, device)
    if record is not None:
        run.spread = run.latents.new_zeros(run.latents.shape[:2])
        record.plan, record.grid = plan, (h, w)
    known = plan.places_before(given)
    if known:
        run.latents[:, known] = latent.to(run.latents).flatten(2).transpose(1, 2)[:, known]
    inputs = step_inputs(plan, generator.language_model, generator.dtype, device)
    sampler = FlowSampler(
        head,
        flow,
        device,
        generator.dtype,
        counts=plan.flow_steps,
        expecting=generator.flow_head if record is not None and flow.solver == "distilled" else None,
        compile=compile and lies_on(head, run.table.device),  # which has its number, "cuda" alone has not
    )
    fresh = TokenStep(generator, plan, sampler, run, compile=compile)

    seen = torch.zeros(h * w, dtype=torch.bool)
    seen[known] = True
    done, total = 0, sum(len(step.group) for step in plan.steps[given : last + 1])
    kept = beginning.cache(plan, planned.ids, images) if begun is not None else None
    with _walker(fresh, graphs) as token_step:
        if kept is not None:
            token_step.cache.load(*kept)
        latents = token_step.run.latents.transpose(1, 2).unflatten(2, (h, w))
        for index, (step, own) in enumerate(zip(plan.steps[: last + 1], inputs)):
            first = index == 0
            if index < given:
                if kept is not None:
                    continue
                token_step.read_first(own, text_embeds) if first else token_step.read(own, step.slot)
                continue
            token_step.first(own, text_embeds) if first else token_step(own, step.slot)
            done += len(step.group)
            if progress is not None:
                seen[list(step.group)] = True
                progress(Progress(done, total, latents, seen.view(h, w)))
        if record is not None:
            record.spread = token_step.run.spread.cpu()
        if beginning is not None and last + 1 < len(plan.steps):
            beginning.fill(generator, plan, last + 1, images, planned.ids, token_step.run, token_step.cache)
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
