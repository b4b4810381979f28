"""Visual Generation Tuning (arXiv 2511.23469) in PyTorch: images to latents and back, prompts to latents."""

__version__ = "0.1.0"

_EXPORTS = {
    "load": "model",
    "BadFile": "files.transfer",
    "Beginning": "run.beginning",
    "DiskFull": "files.transfer",
    "HubError": "files.transfer",
    "LoraError": "files.lora",
    "Model": "model",
    "Change": "run.control",
    "CheckpointError": "files.checkpoint",
    "FlowSettings": "run.flow",
    "Offline": "files.transfer",
    "Progress": "run.generation",
    "Region": "run.control",
    "RunRecord": "run.record",
    "SamplingSettings": "sampling",
    "TrainingError": "training.settings",
}

__all__ = [
    "BadFile",
    "Beginning",
    "Change",
    "CheckpointError",
    "DiskFull",
    "FlowSettings",
    "HubError",
    "LoraError",
    "Model",
    "Offline",
    "Progress",
    "Region",
    "RunRecord",
    "SamplingSettings",
    "TrainingError",
    "load",
]


def __getattr__(name: str):
    """Import what is asked for when it is asked for: `import vgt` costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
