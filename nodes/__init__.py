"""The ComfyUI side: one file a node; everything that touches the host is in host/."""

from comfy_api.latest import ComfyExtension

from .decode import VGTDecode
from .encode import VGTEncode
from .flow_head_settings import VGTFlowHeadSettings
from .host.loading import register_model_folder, warn_if_installed_twice
from .host.training_pictures import offer_pictures
from .load_lora import VGTLoadLoRA
from .loader import VGTLoader
from .prompt_schedule import VGTPromptSchedule
from .region import VGTRegion
from .sampler import VGTARSampler
from .train_lora import VGTTrainLoRA


class VGTExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            VGTLoader,
            VGTEncode,
            VGTDecode,
            VGTARSampler,
            VGTFlowHeadSettings,
            VGTRegion,
            VGTPromptSchedule,
            VGTLoadLoRA,
            VGTTrainLoRA,
        ]


async def comfy_entrypoint() -> VGTExtension:
    warn_if_installed_twice()
    register_model_folder()
    offer_pictures()
    return VGTExtension()
