"""Models of the transformers library, made from plain data: nothing is fetched, and no code but the library's is run.

Asked for only where a model needs it; neither the host nor the other families import it through us.
"""

from __future__ import annotations

import inspect
import json
import threading
from contextlib import contextmanager

import torch
from torch import nn

from ..files.sizes import MAX_LAYERS, LayoutError

_LEFT_OUT = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "custom_generate")
"""What a configuration may say that fetches code or weights, or asks for more than this machine may have."""


class LibraryError(LayoutError):
    """The transformers library is absent, or cannot serve a model. A clause without a full stop."""


OLDEST = (4, 57)
"""The oldest version of the library that is served; tests/families/test_transformers.py passes with it."""


def library():
    """The transformers library. Raises LibraryError where it is not installed, or too old."""
    try:
        import transformers
    except ImportError as error:
        raise LibraryError(f"it needs the transformers library (pip install transformers): {error}") from error
    version = transformers.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise LibraryError(f"it needs the transformers library from {OLDEST[0]}.{OLDEST[1]} on; this is {version}")
    return transformers


def plain_config(data: dict) -> dict:
    """A config.json without what is private to the library or names code: the form that model files hold."""
    kept = {}
    for key, value in data.items():
        if key.startswith("_") or key in _LEFT_OUT or (key == "use_pretrained_backbone" and value):
            continue
        if isinstance(value, dict):
            value = plain_config(value)
        kept[key] = value
    return kept


def check_source(source: str) -> None:
    """Raise ValueError for text that is no config.json, or one of a model larger than any."""
    if not isinstance(source, str) or len(source) > 1 << 20:
        raise ValueError("its configuration for the transformers library is no text, or a very long one")

    def check(key: str, value) -> None:
        if isinstance(value, dict):
            for name, one in value.items():
                check(name, one)
        elif type(value) is int and value > (MAX_LAYERS if key.endswith(("layers", "depth")) else 2**31):
            raise ValueError(f"a {key} of {str(value)[:40]} cannot be")

    data = json.loads(source)
    if not isinstance(data, dict):
        raise ValueError("its configuration for the transformers library is none")
    check("configuration", data)


def class_and_config(source: str) -> tuple[type[nn.Module], object]:
    """The image-text-to-text class of a config.json, and the library's configuration object.

    Raises LibraryError for a type that this version of the library does not have.
    """
    transformers = library()
    data = plain_config(json.loads(source))
    kind, version = str(data.get("model_type"))[:80], f"transformers {transformers.__version__}"
    written = str(data.get("transformers_version", "0")).partition(".")[0]
    if written.isdecimal() and int(written) > int(transformers.__version__.partition(".")[0]):
        # which would not find some of its entries, and take defaults for them without a word
        raise LibraryError(f"{version} is older than its configuration ({data['transformers_version']}); update it")
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(data)
    except KeyError as error:
        raise LibraryError(f"{version} does not know models of type {kind!r}; update it") from error
    except Exception as error:  # whatever its checks of values raise
        raise LibraryError(f"{version} takes no such configuration ({brief(error)})") from error
    classes = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if type(config) not in classes:
        raise LibraryError(f"{version} has no image-text-to-text model of type {kind!r}; take another base model")
    found = classes[type(config)]
    return found[0] if isinstance(found, tuple | list) else found, config


def parts_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Take a model apart: what gives image features, and the language model without its output head.

    Raises LibraryError where these are not two parts.
    """
    core = next((one for one in (getattr(model, "model", None), model) if hasattr(one, "get_image_features")), None)
    if core is None:
        raise LibraryError("its class has no get_image_features, by which VGT asks for image features")
    embedding = core.get_input_embeddings()
    found = [(name, part) for name, part in core.named_modules() if any(one is embedding for one in part.children())]
    if len(found) != 1 or not found[0][0]:
        raise LibraryError("its language model is not a part by itself")
    name, language = found[0]
    if "inputs_embeds" not in inspect.signature(language.forward).parameters:
        raise LibraryError("its language model takes no embeddings")
    parent, _, leaf = name.rpartition(".")
    setattr(core.get_submodule(parent), leaf, None)
    return core, language


def build_parts(source: str, dtype=None) -> tuple[nn.Module, nn.Module]:
    """Both parts from a config.json, their parameters on the meta device.

    What is no parameter, such as a table of frequencies, is computed by the library and keeps its own dtype; only
    floating point numbers are left in the state dict. Raises LibraryError.
    """
    kind, config = class_and_config(source)
    with _parameters_on_meta():
        parts = parts_of(kind._from_config(config, dtype=torch.float32))
    for part in parts:
        for module in part.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.to(dtype or torch.get_default_dtype())))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if not buffer.is_floating_point():
                    module.register_buffer(name, buffer, persistent=False)
        part.eval()
    return parts


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def materialise(part: nn.Module, device) -> None:
    """Put a part that lies on the meta device onto a real one: matrices normal (0.02), scales 1, biases 0."""
    for module in part.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            filled = torch.empty_like(parameter, device=device)
            if filled.ndim > 1:
                nn.init.normal_(filled, std=0.02)
            else:
                nn.init.constant_(filled, float(name == "weight"))
            setattr(module, name, nn.Parameter(filled))
    part.to(device)


@contextmanager
def _parameters_on_meta():
    """Parameters of modules made inside take no memory; what else they hold is made as ever."""
    thread = threading.get_ident()

    def to_meta(_module, _name, parameter):
        if threading.get_ident() == thread and parameter is not None and not parameter.is_meta:
            return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        return None

    handle = nn.modules.module.register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()
