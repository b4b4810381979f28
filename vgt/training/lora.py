"""Tuning by LoRA: low-rank adapters learn from a few pictures, with the generator's own objective; the base rests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..files.lora import BASE_KEY, Base, base_of, fit, places
from ..networks.adapters import Adapters
from ..prompt import PromptTokenizer
from ..run.generation import Generator, generate
from ..sampling import SamplingSettings
from .data import EndlessShuffle
from .generator import GeneratorStage, Objective
from .settings import Settings, TrainingError

OBJECTIVE = Objective(drop_prompt=0.2, draws=4, shift=2.0)
"""A LoRA's, unless a configuration says otherwise. Prompts are dropped of what is kept alone."""
KEPT_AT_ONCE = 16
"""Pictures to keep that are drawn together."""


@dataclass(frozen=True)
class LoraSettings:
    """What the adapters are."""

    rank: int = 8
    alpha: float = 8.0
    """What is learnt counts alpha / rank times."""
    parts: tuple[str, ...] = ("language model",)
    """What they are put on, of PARTS. The flow head makes every token: what it learns shows in all pictures."""
    keep: float = 10.0
    """Weight of leaving alone what is kept."""
    checkpointing: bool = True
    """Compute the language model's layers again for the gradients, instead of keeping what lies between."""

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise TrainingError(f"lora.rank is {self.rank!r}; it must be a whole number from 1 on.")
        if not self.alpha > 0:
            raise TrainingError(f"lora.alpha is {self.alpha!r}; it must be above 0.")


class Pictures(Dataset):
    """(latent float32 [32, h, w], caption) of a few pictures, of any sizes, in memory.

    They lie in an order of their own, whatever order they came in: folders are listed in no certain one.
    """

    def __init__(self, latents: list[Tensor], captions: list[str]):
        # Half precision, as latents lie on disk.
        items = [(latent.detach().cpu().half(), caption) for latent, caption in zip(latents, captions, strict=True)]
        items.sort(key=lambda item: (item[1], tuple(item[0].shape), item[0].numpy().tobytes()))
        self.items = [(latent.float(), caption) for latent, caption in items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.items[index]


def begin(
    generator: Generator, lora: LoraSettings, seed: int, base: Base, init: Mapping[str, Tensor] | None, name: str
) -> tuple[Adapters, int]:
    """Adapters for a run, new ones or those of the LoRA `init`, called `name`; and the steps that it had.

    base: of the generator. Raises LoraError for a LoRA of another model, TrainingError for one of other layers or of
    another rank.
    """
    adapters = Adapters(generator, lora.parts, lora.rank, lora.alpha, seed)
    if init is None:
        return adapters, 0
    shapes = {weight: parameter.shape for weight, parameter in generator.named_parameters()}
    fit(init, places(generator.config, shapes), name, base)
    if (reason := adapters.load(init)) is not None:
        raise TrainingError(f"{name} cannot be gone on from: {reason}; choose what it has, or no LoRA to go on from.")
    found = base_of(init)
    return adapters, found.steps if found else 0


def finish(adapters: Adapters, base: Base, steps: int) -> dict[str, Tensor]:
    """The LoRA as it goes into a file. steps: all that it has seen."""
    return {**adapters.tensors(), BASE_KEY: replace(base, steps=steps).tensor()}


@torch.no_grad()
def draw_kept(
    generator: Generator, tokenizer: PromptTokenizer, prompts: list[str], settings: SamplingSettings, device=None
) -> Pictures | None:
    """What the base draws for prompts that it must go on drawing as it does; None for no prompts."""
    latents: list[Tensor] = []
    for first in range(0, len(prompts), KEPT_AT_ONCE):
        some = prompts[first : first + KEPT_AT_ONCE]
        own = replace(settings, seed=settings.seed + first)
        latents += generate(generator, tokenizer, some, None, own, device=device, graphs=False)
    return Pictures(latents, prompts) if prompts else None


class LoraStage(GeneratorStage):
    """Adapters learn; the generator they are for is no part of the stage, and stays where it is and as it is.

    They must be on (Adapters.on) as long as they are trained. The pictures are learnt as ever, but always with their
    prompts: were these dropped, guidance, which leads away from what is drawn without a prompt, would lead away from
    what is new, and push everything else towards it. Beside them the adapters learn to leave alone what is `kept`
    (prior preservation, arXiv 2208.12242), with and without prompts: there the velocity wanted is the one that the base
    itself says.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PromptTokenizer,
        adapters: Adapters,
        lora: LoraSettings,
        objective: Objective,
        dataset: Pictures,
        settings: Settings,
        review_with=None,
        kept: Pictures | None = None,
    ):
        """kept: pictures that the base drew, with their prompts; each batch holds as many as it learns."""
        super().__init__(adapters, tokenizer, objective, dataset, settings, review_with)
        self._base = (generator,)  # a module in a tuple is no submodule
        self.lora, self.kept = lora, kept
        self.checkpointing = lora.checkpointing

    @property
    def generator(self) -> Generator:
        return self._base[0]

    def groups(self):
        return [{"params": list(self.trained.parameters()), "scale": 1.0}]

    def shards(self):
        raise TrainingError("training.shard is for the whole generator; adapters are small, leave it out for a LoRA.")

    def worth_compiling(self):
        return []  # hooks come and go

    def batches(self, first: int, rank: int, world: int) -> Iterator[tuple[list, list]]:
        learnt = self.settings.batch_size
        kept = learnt if self.kept else 0
        order, other = (
            iter(EndlessShuffle(len(some or [0]), self.settings.seed, first * count, rank, world))
            for some, count in ((self.dataset, learnt), (self.kept, kept))
        )
        while True:
            yield (
                [self.dataset[next(order)] for _ in range(learnt // world)],
                [self.kept[next(other)] for _ in range(kept // world)],
            )

    def forward(self, batch, rng):
        """batch: (latent, caption) of pictures to learn, then of pictures to keep."""
        losses: dict[str, Tensor] = {}
        try:
            for name, pictures in zip(("flow", "kept"), batch):
                for latents, captions in _by_size(pictures):
                    share = len(captions) / len(pictures)
                    losses[name] = losses.get(name, 0.0) + share * self._loss(latents, captions, rng, name == "kept")
        finally:
            self.generator.language_model.checkpointing = False
        loss = losses["flow"] + self.lora.keep * losses["kept"] if "kept" in losses else losses["flow"]
        return loss, losses

    def _loss(self, latents: Tensor, captions: list[str], rng: torch.Generator, keep: bool) -> Tensor:
        if not keep:
            return F.mse_loss(*self.predict(latents, captions, rng, 0.0))
        state = rng.get_state()
        with torch.no_grad(), self.trained.silent():
            wanted = self.predict(latents, captions, rng, self.objective.drop_prompt)[0]
        rng.set_state(state)
        return F.mse_loss(self.predict(latents, captions, rng, self.objective.drop_prompt)[0], wanted)

    def review(self, averaged, folder, step):
        if self.review_with is None:
            return {}
        if averaged is self.trained:
            return self.review_with(self.generator, self.tokenizer, folder, step)
        with self.trained.silent(), averaged.on(self.generator):
            return self.review_with(self.generator, self.tokenizer, folder, step)


def _by_size(pictures: list[tuple[Tensor, str]]) -> Iterator[tuple[Tensor, list[str]]]:
    """Pictures of one size go through the model together: latents [B, 32, h, w] and their captions."""
    sizes: dict[tuple, list] = {}
    for latent, caption in pictures:
        sizes.setdefault(tuple(latent.shape), []).append((latent, caption))
    for alike in sizes.values():
        latents, captions = zip(*alike)
        yield torch.stack(latents), list(captions)
