"""The socket types that only VGT nodes exchange."""

from comfy_api.latest import io

VGTModel = io.Custom("VGT_MODEL")
FlowHead = io.Custom("VGT_FLOW_HEAD")
