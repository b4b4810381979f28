"""Says how to train, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why, in which step, and what is kept."""

    __module__ = "vgt"  # where it is imported from; the host shows this in its log and API


@dataclass(frozen=True)
class Settings:
    """Says how to train. Batch sizes count all processes together."""

    steps: int
    batch_size: int
    learning_rate: float
    accumulation: int = 1
    """Batches whose gradients make one step together: as a larger batch, in the memory of a small one."""
    warmup: int = 100
    """Steps of linear rise to the learning rate; a cosine falls from there to `final_rate` times it."""
    final_rate: float = 0.0
    muon: bool = False
    """Matrices and convolutions between hidden states are trained by Muon, the rest by AdamW: fewer steps, each dearer.
    It orthogonalises in bfloat16, in float32 where that is slow; the first line of a run says which."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient, over each parameter group."""
    ema: float | None = None
    """Decay of the averaged weights; None keeps none."""
    seed: int = 0
    dtype: str = "float32"
    """What matrix products compute in, but float32 where bfloat16 is slow; weights are float32."""
    device: str = "cpu"
    checkpointing: bool = False
    """Of the language model's layers keep only what goes in, and compute them again for the gradients: the whole
    generator's stage."""
    eight_bit: bool = False
    """Keep AdamW's moments in 8 bits (torchao): a quarter of their memory."""
    shard: bool = False
    """Under torchrun: share weights, gradients and moments out over the processes (PyTorch's fully_shard), for models
    of which each could not hold all. Not together with muon or ema."""
    compile: bool = False
    """Let torch.compile make the kernels, which takes minutes at the start; README.md says what it gave."""
    threads: int | None = None
    workers: int = 0
    log_every: int = 10
    save_every: int = 200
    sheet_every: int = 500
    """How often a sample sheet is drawn and the held-out figures are taken."""
