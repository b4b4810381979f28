"""A generator shared out over two processes (gloo) learns as it does when one holds all of it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from host import ROOT

SCRIPT = """
    import sys
    from pathlib import Path
    import torch
    from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
    from vgt.families import family
    from vgt.prompt import PromptTokenizer
    from vgt.training.build import new_generator
    from vgt.training.generator import GeneratorStage, Objective
    from vgt.training.settings import Settings
    from vgt.training.text import train_tokenizer
    from vgt.training.processes import join_torchrun
    from vgt.training.trainer import train

    torch.set_num_threads(1)
    join_torchrun("cpu")
    out, shard, until = Path(sys.argv[1]), sys.argv[2] == "shard", int(sys.argv[3])
    found = family("qwen2_5_vl")
    text = train_tokenizer(["a red circle"] * 9, 300, found.special_tokens).encode()
    tokenizer = PromptTokenizer(text, found.special_tokens[0], found.template)
    config = GeneratorConfig(LanguageModelConfig(32, 2, 2, 1, 48, 300, head_width=16), FlowHeadConfig(32, 2), 4)
    rng = torch.Generator().manual_seed(1)
    data = [(torch.randn(32, 2, 2, generator=rng), "a red circle", torch.empty(0)) for _ in range(8)]
    settings = Settings(
        6, 4, 3e-3, warmup=1, log_every=1, save_every=3, sheet_every=3, checkpointing=shard, shard=shard
    )
    drawn = []

    def review(generator, tokenizer, folder, step):
        from vgt.run.generation import generate
        from vgt.sampling import SamplingSettings

        latent = generate(generator, tokenizer, ["a red circle"], settings=SamplingSettings(56, 56))
        return {"drawn": float(latent.abs().mean())}

    class Both(GeneratorStage):
        # One process that does the work of two: their shares of a batch, each with its own random numbers.

        def batches(self, first, rank, world):
            return zip(super().batches(first, 0, 2), super().batches(first, 1, 2))

        def forward(self, batch, rng):
            parts = [
                super(Both, self).forward(share, torch.Generator().manual_seed(rng.initial_seed() + rank))
                for rank, share in enumerate(batch)
            ]
            losses = {name: sum(own[name] for _, own in parts) / 2 for name in parts[0][1]}
            return sum(loss for loss, _ in parts) / 2, losses

    kind = Both if sys.argv[2] == "one" else GeneratorStage
    stage = kind(new_generator(config, "qwen2_5_vl", 0), tokenizer, Objective(), data, settings, review)
    trained = train(stage, settings, out, {}, until=until)
    torch.save({name: tensor.clone() for name, tensor in trained.state_dict().items()}, out / "trained.pt")
"""


def run(folder, how, processes=2, until=6):
    script = folder / "run.py"
    folder.mkdir(exist_ok=True)
    script.write_text(textwrap.dedent(SCRIPT))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, script, folder, how, str(until)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[:6000]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], [line for line in lines if "held_out_drawn" in line]


def test_shared_out_it_has_the_loss_curve_of_one_process(tmp_path):
    """Also with gradient checkpointing, and gone on from in the middle."""
    wanted, pictures = run(tmp_path / "one", "one", processes=1)
    first, _ = run(tmp_path / "shard", "shard", until=3)
    found, drawn = run(tmp_path / "shard", "shard")
    assert found == pytest.approx(wanted, abs=2e-5) and first == found[:3] and len(found) == 6
    assert [line["step"] for line in drawn] == [3, 6]
    assert [line["held_out_drawn"] for line in drawn] == pytest.approx(
        [x["held_out_drawn"] for x in pictures], abs=1e-4
    )
