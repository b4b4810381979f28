"""Small random models of the transformers library's own classes, in their hub layout."""

import json
import logging

from vgt.training.text import train_tokenizer

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False, "patch_size": 14}


def text(kind, **more):
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return {"model_type": kind, **sizes, **heads, **more}


def _parts(sections):
    return {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e4, "partial_rotary_factor": 1.0}


CONFIGS = {
    # any size, through a pixel shuffle
    "smolvlm": {
        "scale_factor": 2,
        "text_config": text("llama"),
        "vision_config": {**VISION, "model_type": "smolvlm_vision", "patch_size": 8, "image_size": 64},
    },
    "idefics3": {
        "scale_factor": 2,
        "text_config": text("llama"),
        "vision_config": {**VISION, "model_type": "idefics3_vision", "patch_size": 8, "image_size": 64},
    },
    # any size, tiles left out; two pixels of the native side belong to no patch, as in the published model
    "llava_onevision": {"text_config": text("qwen2"), "vision_config": {**SIGLIP, "image_size": 58}},
    # one size, sliding attention in the language model
    "gemma3": {
        "mm_tokens_per_image": 16,
        "text_config": text("gemma3_text", head_dim=16, sliding_window=256),
        "vision_config": {**SIGLIP, "image_size": 112},
    },
    # any size, patches in merge order, positions in three parts
    "glm4v": {
        "text_config": text("glm4v_text", rope_scaling=_parts([1, 1, 2]), rope_parameters=_parts([1, 1, 2])),
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "image_size": 56,
            "out_hidden_size": 32,
            "intermediate_size": 48,
        },
    },
}
NO_GRID = {
    "idefics2": {
        "text_config": text("mistral", sliding_window=None),
        "perceiver_config": {
            "resampler_n_latents": 64,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "num_key_value_heads": 1,
            "resampler_head_dim": 16,
            "hidden_size": 32,
        },
        "vision_config": {**VISION, "model_type": "idefics2_vision", "patch_size": 14, "image_size": 56},
    },
}
NO_CACHE = {
    "lfm2_vl": {
        "text_config": text("lfm2", layer_types=["conv", "full_attention"]),
        "vision_config": {**VISION, "model_type": "siglip2_vision_model", "patch_size": 14, "num_patches": 16},
    },
}


def make_model(kind):
    """The library's model of a kind, with weights that are not near zero."""
    import torch

    from vgt.networks.transformers_library import class_and_config

    config = {**CONFIGS, **NO_GRID, **NO_CACHE}[kind]
    model_class, config = class_and_config(json.dumps({"model_type": kind, **config}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class._from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def save_base(kind, folder):
    """Write a model of a kind as its hub repository would have it; returns the model."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = make_model(kind)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_tokenizer(["a red circle"] * 9, 400, (PAD, START, END)))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": CHAT_TEMPLATE}))
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return model


def checkpoint_of(base):
    """A whole VGT model around a base model as load_base gives it; its new parts are random."""
    import torch

    from family_models import DECODER, randomise
    from vgt.config import AutoencoderConfig, FlowHeadConfig, GeneratorConfig, ModelConfig
    from vgt.files.checkpoint import Checkpoint
    from vgt.networks.autoencoder import Autoencoder
    from vgt.run.generation import Generator

    autoencoder = AutoencoderConfig(base.vision, base.language.width, DECODER)
    sizes = GeneratorConfig(base.language, FlowHeadConfig(32, 2), 6)
    config = ModelConfig(base.family, autoencoder, sizes, base.pad_token)
    parts = {"autoencoder": randomise(Autoencoder(autoencoder))}
    parts["generator"] = randomise(Generator(sizes, base.family, base.token_pixels))
    parts["autoencoder"].vision_tower.load_state_dict(base.vision_state)
    parts["generator"].language_model.load_state_dict(base.language_state)
    tensors = {f"{part}.{name}": tensor for part, one in parts.items() for name, tensor in one.state_dict().items()}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    return Checkpoint(None, config, tensors, base.tokenizer_json)
