"""Models of a family that are made and run in no time."""

from pathlib import Path

import torch

from vgt.config import (
    AutoencoderConfig,
    FlowHeadConfig,
    GeneratorConfig,
    LanguageModelConfig,
    ModelConfig,
    PixelDecoderConfig,
)
from vgt.files.checkpoint import Checkpoint
from vgt.networks.autoencoder import Autoencoder
from vgt.run.generation import Generator
from vgt.training.text import train_tokenizer

DECODER = PixelDecoderConfig((8, 16, 32, 32, 32, 32), (1,) * 6, (False,) * 6)


def tokenizer_of(found):
    """A tokenizer.json with the family's special tokens."""
    return train_tokenizer(["a red circle", "<img>"] * 9, 300, found.special_tokens)


def language_of(found):
    """The language model's configuration, for the vocabulary of `tokenizer_of`."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_str(tokenizer_of(found)).get_vocab_size()
    # Where there are norms of queries and keys, heads have a width of their own.
    head_width = 24 if found.language_variant.get("qk_norm") else 16
    sizes = {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "mlp_width": 64, "head_width": head_width}
    return LanguageModelConfig(**sizes, vocabulary=vocabulary, max_positions=512, **found.language_variant)


def randomise(module, seed=0):
    """Weights that keep activations of order one, and norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scaled = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.2 * noise
            parameter.copy_(scaled)
    return module.eval()


def checkpoint_of(found):
    """A whole model with random weights."""
    autoencoder = AutoencoderConfig(found.miniature, 32, DECODER)
    generator = GeneratorConfig(language_of(found), FlowHeadConfig(32, 2), (4, 6))
    config = ModelConfig(found.name, autoencoder, generator, found.template.pad)
    tensors = {}
    for part, module in (
        ("autoencoder", Autoencoder(autoencoder)),
        ("generator", Generator(generator, found.name, config.token_pixels)),
    ):
        tensors.update({f"{part}.{name}": tensor for name, tensor in randomise(module).state_dict().items()})
    return Checkpoint(Path("miniature"), config, tensors, tokenizer_of(found).encode())
