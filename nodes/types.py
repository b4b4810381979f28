"""What all VGT nodes' schemas share: the socket types that only they exchange, and search aliases."""

from comfy_api.latest import io

VGTModel = io.Custom("VGT_MODEL")
FlowHead = io.Custom("VGT_FLOW_HEAD")
Regions = io.Custom("VGT_REGIONS")
Schedule = io.Custom("VGT_SCHEDULE")


def search_aliases(*words: str) -> dict:
    """Other words the node search finds a node by; hosts before 0.11 have no place for them."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}
