"""What all VGT nodes' schemas share: socket types that only they or the host's training exchange, search aliases."""

import inspect

from comfy_api.latest import io

VGTModel = io.Custom("VGT_MODEL")
FlowHead = io.Custom("VGT_FLOW_HEAD")
Regions = io.Custom("VGT_REGIONS")
Schedule = io.Custom("VGT_SCHEDULE")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")


def search_aliases(*words: str) -> dict:
    """Other words the node search finds a node by; hosts before 0.11 have no place for them.

    Those hosts' interfaces compare a node's id and display name alone (1.32.9 reads neither category nor description):
    there "VGT" and "sampler" find the sampler, and "text to image" does not. Display names stay short all the same: one
    with "text to image" in it would be wrong where the sampler repaints, and would not be that of the help page.
    """
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}


def advanced() -> dict:
    """For an input that is rarely used: newer hosts fold it away, older ones have no word for it."""
    return {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}


def with_defaults(node: type[io.ComfyNode], given: dict) -> dict:
    """The inputs of a run, with the default of each that an API prompt left out."""
    defaults = {one.id: one.default for one in node.SCHEMA.inputs if getattr(one, "default", None) is not None}
    return {**defaults, **given}
