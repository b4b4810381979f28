"""Teaches a generator where a caption's things lie, before it learns to draw them.

What a place shows depends on words far apart: "a lemon left of a key" and "a key left of a lemon" hold the same. From
pictures alone a small model learns that very slowly; shown which name a place belongs to, in some minutes. So the heads
that bring names' looks to queries (looks.py) learn where to look, and two linear maps read off the fourth layer which
thing a place shows, and what part of it. Only the layers up to there learn; no picture is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LATENT_CHANNELS
from ..prompt import PromptTokenizer
from ..run.generation import Generator
from .build import seeded
from .layout_data import MEASURES, LayoutDataset
from .looks import NAME_LEVEL, READER
from .sequence import in_steps, next_inputs
from .settings import Settings
from .trainer import Stage

LAYERS = 4
"""So many layers learn."""
OTHER_LEVEL, WORD_LEVEL = -6.0, -5.0
"""Attention's scores, before the softmax and beside the first token's, of the other name and of words that are no
names: so much at most. As good as nothing, where the first token takes nearly all."""
MEASURES_WEIGHT, WORDS_WEIGHT, LOOK_WEIGHT = 4.0, 0.3, 0.5
"""Of the parts of the loss, beside the scores of names."""


class LayoutStage(Stage):
    """Minimises squared errors of the reading heads' scores, and of what each place shows."""

    def __init__(
        self,
        trained: Generator,
        tokenizer: PromptTokenizer,
        dataset: LayoutDataset,
        looks: Tensor,
        names: Tensor,
        settings: Settings,
    ):
        """looks: float32 [len(dataset.names), k], of each thing. names: bool [vocabulary], which tokens are names."""
        super().__init__()
        self.trained, self.tokenizer = trained, tokenizer
        self.dataset, self.settings = dataset, settings
        self.register_buffer("looks", looks, persistent=False)
        self.register_buffer("names", names, persistent=False)
        width, head_width = trained.language_model.config.width, trained.language_model.config.head_width
        self.heads = -(-looks.shape[1] // head_width)
        with seeded(settings.seed):
            self.auxiliary = nn.ModuleDict(
                {"measures": nn.Linear(width, MEASURES), "look": nn.Linear(width, looks.shape[1])}
            )

    def groups(self):
        model = self.trained.language_model
        learning = [parameter for layer in model.layers[:LAYERS] for parameter in layer.parameters()]
        return [
            {"params": learning, "scale": 1.0},
            {"params": list(self.trained.position_queries.parameters()), "scale": 0.3},
            {"params": [model.embed_tokens.weight], "scale": 0.1},
            {"params": list(self.auxiliary.parameters()), "scale": 2.0},
        ]

    def forward(self, batch, rng):
        captions, said, names, drawn, measures = batch
        device = self.looks.device
        said, names, drawn, measures = (x.to(device) for x in (said, names, drawn, measures))
        text = in_steps(self.tokenizer(captions, None))
        scores, states = self._read(text)
        error = self._scores_error(scores, self._naming(text, captions, said), drawn, names)

        thing = names.gather(1, drawn.clamp(min=0))  # of each place: the number of its name
        shown = (drawn >= 0) & (thing >= 0)
        wanted = self.looks[thing.clamp(min=0)] * shown[..., None]
        of_drawings = (names[:, 0] >= 0)[:, None, None]  # shapes have no looks
        look = ((self.auxiliary["look"](states).float() - wanted).square() * of_drawings).mean()
        measured = F.mse_loss(self.auxiliary["measures"](states).float(), measures)
        loss = error + LOOK_WEIGHT * look + MEASURES_WEIGHT * measured
        return loss, {"scores": error, "look": look, "measures": measured}

    def _naming(self, text, captions: list[str], said: Tensor) -> Tensor:
        """int64 [B, tokens]: which thing a token names; -1 for other words, -2 for padding and the first token."""
        naming = torch.full(text.ids.shape, -2)
        for row, (caption, spans) in enumerate(zip(captions, said.tolist())):
            for token, (start, end) in enumerate(self.tokenizer.spans(caption)):
                inside = [number for number, (a, b) in enumerate(spans) if start < b and a < end]
                naming[row, token] = inside[0] if inside else -1
        naming[:, 0] = -2
        naming = naming.to(said.device)
        return torch.where(self.names[text.ids.to(said.device)], naming, naming.clamp(max=-1))

    def _read(self, text) -> tuple[Tensor, Tensor]:
        """What the reading heads' queries score the text's tokens, [B, heads, P, tokens], and the queries' states after
        LAYERS layers, normalised, [B, P, width].
        """
        model, grid, tokens = self.trained.language_model, self.dataset.grid, text.ids.shape[1]
        places = torch.arange(grid**2, device=self.looks.device).expand(len(text.ids), -1)
        nothing = torch.zeros(*places.shape, LATENT_CHANNELS, device=places.device)
        start = self.tokenizer.image_start
        x, positions, seen, asked = next_inputs(self.trained, text, start, nothing, places, 0, (grid, grid))
        cos, sin = model.rotary(positions, x.dtype)
        for number, layer in enumerate(model.layers[:LAYERS]):
            if number == READER:
                q, k, _ = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
                q, k = q[:, :: q.shape[1] // k.shape[1]][:, : self.heads, asked], k[:, : self.heads, :tokens]
                scores = (q @ k.transpose(2, 3)).float() / q.shape[-1] ** 0.5
            x = layer(x, cos, sin, None, 0, seen, None)
        return scores, F.rms_norm(x[:, asked], x.shape[-1:])

    def _scores_error(self, scores: Tensor, naming: Tensor, drawn: Tensor, names: Tensor) -> Tensor:
        """By how much the scores miss: a place's name shall have NAME_LEVEL, what names nothing here less."""
        scores = scores - scores[..., :1]
        two = (names[:, 1] >= 0)[:, None]
        place = torch.where(two, drawn, 0)[:, None, :, None]  # of one thing alone, all places ask
        naming = naming[:, None, None]
        named = (naming >= 0) & (place >= 0)
        own, other, word = named & (naming == place), named & (naming != place), naming == -1

        def mean(errors: Tensor, where: Tensor) -> Tensor:
            return (errors.square() * where).sum() / (where.expand_as(errors).sum() + 1)

        return (
            mean(scores - NAME_LEVEL, own)
            + mean(F.relu(scores - OTHER_LEVEL), other)
            + WORDS_WEIGHT * mean(F.relu(scores - WORD_LEVEL), word)
        )
