"""Flow head and language model compiled with the host's layers; a process with the host's modules, no server."""

import pytest

from host_process import BEGIN, run

pytestmark = pytest.mark.host


def test_the_hosts_layers_compile_in_one_piece(tmp_path):
    """In inference mode, as nodes run; without a compiler's backend, so that it takes no time."""
    said = run(
        tmp_path,
        BEGIN,
        """
from pack.vgt.run import compiled
compiled._compile = lambda function: torch.compile(function, backend="eager", dynamic=False, fullgraph=True)
compiled.check_compiler = lambda _: None
model = vgt.load(FIXTURE)
generator = Generator(model.config.generator, "internvl3", operations=Operations)
generator.load_state_dict(model.generator.state_dict())
settings = SamplingSettings(56, 84, seed=3, cfg=3.0, flow=vgt.FlowSettings(steps=3))
with torch.inference_mode():
    drawn = [generate(generator, model.tokenizer, "a cat", settings=settings, compile=way) for way in (False, True)]
print(json.dumps((drawn[0] - drawn[1]).abs().max().item()))
""",
    )
    assert said < 1e-5
