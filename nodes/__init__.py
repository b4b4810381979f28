"""The ComfyUI side: one file a node; everything that touches the host is in host.py."""

from comfy_api.latest import ComfyExtension

from . import host
from .decode import VGTDecode
from .encode import VGTEncode
from .flow_head_settings import VGTFlowHeadSettings
from .loader import VGTLoader
from .sampler import VGTARSampler


class VGTExtension(ComfyExtension):
    async def get_node_list(self):
        return [VGTLoader, VGTEncode, VGTDecode, VGTARSampler, VGTFlowHeadSettings]


async def comfy_entrypoint() -> VGTExtension:
    host.warn_if_installed_twice()
    host.register_model_folder()
    return VGTExtension()
