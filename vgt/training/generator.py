"""Trains the generator (arXiv 2511.23469): flow matching on the latents, in a random order of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LATENT_CHANNELS
from ..prompt import PromptTokenizer
from ..run.generation import Generator, generate
from ..sampling import SamplingSettings
from .build import seeded
from .captioning import Captioner, caption_loss
from .sequence import in_steps, next_inputs, query_inputs, states
from .settings import Settings
from .sheet import save_sheet
from .trainer import Stage


@dataclass(frozen=True)
class Objective:
    """What the generator's stage minimises, and on what."""

    drop_prompt: float = 0.1
    """Share of the samples that see the unconditional prompt."""
    draws: int = 4
    """Noise levels drawn for each token: the flow head is cheap beside the language model. 0: it does not learn."""
    guess: float = 0.0
    """Weight of the squared error of a linear guess of a token from its condition. Where captions leave little open, it
    tells the language model more, for less work, than the flow's noisy velocities."""
    shift: float = 1.0
    """Shifts the noise levels: above 1 towards noise. 1 is the plain logit-normal."""
    repa: float = 0.0
    """Weight of the REPA loss: half-way through, the flow head's features point where the semantic features do."""
    caption: float = 0.0
    """Weight of the captioning loss, which keeps the language model a VLM's."""
    caption_share: float = 0.25
    """Share of the batch that captioning reads."""
    openings: tuple[int, ...] = ()
    """Steps between two ordinary ones, each with so many tokens drawn, that learn the next token at every place that is
    left: the first few tokens decide what the rest follows."""
    places: int | None = None
    """How many of those places such a step learns, drawn by lot: more pictures for the same work. None: all."""
    language_rate: float = 1.0
    """The language model's learning rate, as a multiple of that of the new parts."""
    frozen: int = 0
    """So many first layers of the language model stay as they are, and with them words and position queries. If it is
    all of them, nothing learns but the flow head and the projector to it, at half the work."""


def flow_matching(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mix latents x and noise, [N, 32], at t [N] in [0, 1] (1 is data) → (x_t, velocity x - noise), each [N, 32]."""
    t = t[:, None]
    return t * x + (1 - t) * noise, x - noise


def draw_times(count: int, shift: float, rng: torch.Generator) -> Tensor:
    """Draw logit-normal noise levels [count] in (0, 1), shifted as in RAE: t ← 1 - s·u / (1 + (s - 1)·u), u = 1 - t."""
    u = 1 - torch.randn(count, generator=rng).sigmoid()
    return 1 - shift * u / (1 + (shift - 1) * u)


def _beside(x: Tensor, rng: torch.Generator) -> torch.Generator:
    """A generator on x's device, seeded by `rng`: noise drawn by a processor would keep a GPU waiting."""
    if x.device.type == rng.device.type:
        return rng
    return torch.Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=rng)))


class GeneratorStage(Stage):
    """Trains language model, position queries and flow head together, on latents of a frozen tokenizer."""

    def __init__(
        self,
        trained: nn.Module,
        tokenizer: PromptTokenizer,
        objective: Objective,
        dataset,
        settings: Settings,
        review_with=None,
        captioner: Captioner | None = None,
    ):
        """dataset: a `LatentDataset`, with features for REPA and captioning. review_with: see `Review`.

        captioner: for `objective.caption`.
        """
        super().__init__()
        self.trained = trained
        self.tokenizer = tokenizer
        self.captioner = captioner
        self.objective = objective
        self.dataset, self.settings, self.review_with = dataset, settings, review_with
        self.checkpointing = settings.checkpointing
        self.drawn: int | None = None
        if objective.frozen:
            model, kept = self.generator.language_model, [self.generator.position_queries]
            if objective.frozen < len(model.layers):
                kept += [model.embed_tokens, *model.layers[: objective.frozen]]
            else:
                kept += [model, self.generator.image_in_projector]
            for part in kept:
                part.requires_grad_(False)
        self.auxiliary = nn.ModuleDict()
        """What is for learning alone: it is saved with a run, and not with a model."""
        with seeded(settings.seed):
            if objective.repa:
                width = self.generator.flow_head.width
                semantic = dataset[0][2].shape[-1]  # which need not be the language model's
                self.auxiliary["repa"] = nn.Sequential(
                    nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, semantic)
                )
            if objective.guess:
                self.auxiliary["guess"] = nn.Linear(self.generator.image_out_projector.out_features, LATENT_CHANNELS)

    @property
    def generator(self) -> Generator:
        """What draws; all of it learns."""
        return self.trained

    def groups(self):
        language = {id(parameter) for parameter in self.trained.language_model.parameters()}
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in learning if id(p) not in language], "scale": 1.0},
            {"params": [p for p in learning if id(p) in language], "scale": self.objective.language_rate},
        ]

    def shards(self):
        return list(self.generator.language_model.layers)

    def worth_compiling(self):
        if self.objective.repa:  # which listens inside the flow head
            return [self.trained.language_model]
        return [self.trained.language_model, self.trained.flow_head]

    def begin_step(self, step):
        self.drawn = (None, *self.objective.openings)[step % (len(self.objective.openings) + 1)]

    def forward(self, batch, rng):
        objective, generator = self.objective, self.generator
        latents, captions, features = batch
        grid = tuple(latents.shape[2:])
        half = []
        hook = self._tap(half) if objective.repa else None
        condition, wanted, order, rank = self.ask(latents, captions, rng, objective.drop_prompt)
        losses, weights = (
            {},
            {"flow": 1.0, "guess": objective.guess, "repa": objective.repa, "caption": objective.caption},
        )
        if objective.draws:
            losses["flow"] = F.mse_loss(*self.velocities(condition, wanted, rng))
        if objective.guess:
            losses["guess"] = F.mse_loss(self.auxiliary["guess"](condition).float(), wanted)
        features, captions = features.to(order.device)[rank], [captions[index] for index in rank]
        if hook is not None:
            hook.remove()
            wanted = torch.take_along_dim(features, order[..., None], 1).flatten(0, 1)
            likeness = F.cosine_similarity(self.auxiliary["repa"](half[0]), wanted.repeat(objective.draws, 1), dim=-1)
            losses["repa"] = 1 - likeness.float().mean()
        if objective.caption:
            some = max(1, round(len(captions) * objective.caption_share))
            model = generator.language_model
            losses["caption"] = caption_loss(model, self.captioner, features[:some], captions[:some], grid)
        return sum(weights[name] * loss for name, loss in losses.items()), losses

    def ask(
        self, latents: Tensor, captions: list[str], rng: torch.Generator, drop_prompt: float
    ) -> tuple[Tensor, Tensor, Tensor, list]:
        """Run the language model on latents [B, 32, h, w], a share of the prompts dropped, in an order of tokens, both
        drawn from `rng`.

        Returns what it says of the n tokens that were asked for, the flow head's condition, [B * n, D]; their latents,
        [B * n, 32]; their places, int64 [B, n]; and the order in which the rows were taken.
        """
        objective, generator = self.objective, self.generator
        generator.language_model.checkpointing = self.checkpointing
        device = next(generator.parameters()).device
        grid = tuple(latents.shape[2:])
        latents = latents.to(device).flatten(2).transpose(1, 2)
        rows, tokens = latents.shape[:2]

        # The tokenizer lists conditional rows first, so the batch is put in that order too.
        dropped = torch.rand(rows, generator=rng) < drop_prompt
        rank = dropped.long().argsort(stable=True).tolist()
        latents, captions = latents[rank], [captions[index] for index in rank]
        kept = rows - int(dropped.sum())
        text = in_steps(self.tokenizer(captions[:kept], [None] * (rows - kept)))
        order = torch.rand(rows, tokens, generator=rng).argsort(1).to(device)
        if self.drawn is None:
            inputs = query_inputs(generator, text, self.tokenizer.image_start, latents, order, grid)
        else:
            order = order[:, : self.drawn + (objective.places or tokens)]
            inputs = next_inputs(generator, text, self.tokenizer.image_start, latents, order, self.drawn, grid)
            order = order[:, self.drawn :]

        condition = generator.image_out_projector(states(generator, inputs)).flatten(0, 1)
        return condition, torch.take_along_dim(latents, order[..., None], 1).flatten(0, 1), order, rank

    def predict(
        self, latents: Tensor, captions: list[str], rng: torch.Generator, drop_prompt: float
    ) -> tuple[Tensor, Tensor]:
        """The velocity that the generator says and that of the flow, each float32 [draws * B * n, 32]; see `ask`."""
        return self.velocities(*self.ask(latents, captions, rng, drop_prompt)[:2], rng)

    def velocities(self, condition: Tensor, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the flow head says and what the flow has, each float32 [draws * N, 32], of latents [N, 32] at noise
        levels drawn from `rng`.
        """
        objective, flow_head = self.objective, self.generator.flow_head
        condition, x = (rows.repeat(objective.draws, 1) for rows in (condition, latents))
        noise = torch.randn(x.shape, generator=_beside(x, rng), device=x.device, dtype=x.dtype)
        t = draw_times(len(x), objective.shift, rng).to(x)
        x_t, velocity = flow_matching(x, noise, t)
        return flow_head(x_t, t, condition).float(), velocity

    def _tap(self, into: list):
        blocks = self.generator.flow_head.blocks
        return blocks[max(1, len(blocks) // 2) - 1].register_forward_hook(lambda _, __, out: into.append(out))

    def review(self, averaged, folder: Path, step: int) -> dict[str, float]:
        return {} if self.review_with is None else self.review_with(averaged, self.tokenizer, folder, step)


@dataclass
class Review:
    """Draws some prompts of the held-out data as a sample sheet."""

    autoencoder: nn.Module
    prompts: list[str]
    size: int
    cfg: float = 4.5
    tokens_per_step: int = 1

    def __call__(self, generator: Generator, tokenizer: PromptTokenizer, folder: Path, step: int) -> dict[str, float]:
        latent = generate(
            generator,
            tokenizer,
            self.prompts,
            settings=SamplingSettings(self.size, self.size, cfg=self.cfg, tokens_per_step=self.tokens_per_step),
            graphs=False,  # their memory would be missing from training on
        )
        pixels = (self.autoencoder.decode(latent) + 1) / 2
        save_sheet(pixels, folder / f"sheet-{step:06}.png", columns=8)
        (folder / "sheet.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        return {}
