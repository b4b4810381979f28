"""The nodes' own paths on a CUDA device that is not there, with the host's layers: fp8, partly loaded, tiled, previews.

A process with the host's modules; no server runs. FakeCuda says what fails in it.
"""

import pytest
import torch

from host_process import BEGIN, run

pytestmark = [pytest.mark.host, pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a device")]

SCRIPT = """
sys.path.append(ROOT + "/tests")
from fake_cuda import FakeCuda
from pack.nodes.host import progress, vae
from pack.nodes.host.operations import Float8Operations
model = vgt.load(FIXTURE)
config, bf16, said = model.config, torch.bfloat16, {}
settings = SamplingSettings(112, 112, seed=3, cfg=3.0, flow=vgt.FlowSettings(steps=3))

def draw(generator, **options):
    latent = generate(generator, model.tokenizer, "a cat", settings=settings, device="cuda", graphs=False, **options)
    return [latent.device.type, str(latent.dtype), list(latent.shape)]

def made(operations, device):
    return Generator(
        config.generator, "internvl3", operations=operations, head_operations=Operations, device=device, dtype=bf16
    )

with FakeCuda():
    said["fp8"] = draw(made(Float8Operations, "cuda"))
    # As the host leaves a model that is too large: some modules in main memory, cast when they are called.
    for operations in (Operations, Float8Operations):
        generator = made(operations, "cpu")
        patcher.set_table_aside(generator)
        for index, module in enumerate(generator.modules()):
            if index % 2 and hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
            else:
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, torch.nn.Parameter(parameter.to("cuda"), requires_grad=False))
        said[f"partly {operations.__name__}"] = draw(generator)
"""

VAE = """
import numpy, types
from torch._subclasses.fake_tensor import FakeTensor
from pack.vgt.networks.autoencoder import Autoencoder
from pack.vgt.run.generation import Progress
FakeTensor.numpy = lambda self: numpy.zeros(self.shape, dtype=numpy.uint8)  # there are no numbers to see
comfy.utils.tiled_scale_multidim = comfy.utils.tiled_scale_multidim.__wrapped__  # FakeCuda knows no inference mode

with FakeCuda(), torch.no_grad():
    autoencoder = Autoencoder(config.autoencoder, operations=Operations, device="cuda", dtype=bf16)
    made = vae.VGTVAE(autoencoder, config.autoencoder, bf16)
    made.device = torch.device("cuda")
    said = {
        "encoded": list(made.encode_tiled_(torch.rand(1, 3, 168, 224), 112, 112, 28).shape),
        "decoded": list(made.decode_tiled_(torch.rand(1, 32, 6, 8), 4, 4, 1).shape),
    }
    report = progress.ProgressReport(types.SimpleNamespace(vae=made, patcher=None, latent_rgb=[[0.1] * 3] * 33), 16)
    state = Progress(8, 16, torch.zeros(2, 32, 4, 4, device="cuda"), torch.ones(4, 4, dtype=torch.bool))
    said["preview by colours"] = list(report._picture(state).size)
    report._decodes = True
    said["preview"] = list(report._picture(state).size)
"""


def test_generating(tmp_path):
    said = run(tmp_path, BEGIN, SCRIPT, "print(json.dumps(said))")
    assert said == {name: ["cuda", "torch.float32", [1, 32, 4, 4]] for name in said}
    assert len(said) == 3


def test_tiles_and_previews(tmp_path):
    said = run(tmp_path, BEGIN, SCRIPT.partition("with FakeCuda")[0], VAE, "print(json.dumps(said))")
    assert said == {
        "encoded": [1, 32, 6, 8],
        "decoded": [1, 3, 168, 224],
        "preview": [112, 112],
        "preview by colours": [112, 112],
    }
