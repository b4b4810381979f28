"""Token steps as CUDA graphs. Without a CUDA device the capture itself is stood in for: what it would record is done
again at each replay, so that everything else (fixed shapes, whole cache under a mask, tensors loaded from run to run)
is what it is on one.
"""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

import recorded
import vgt
from host import ROOT, comfyui_path
from vgt.run import graphs as cuda_graphs

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "flow": vgt.FlowSettings(steps=3)}


@pytest.fixture(params=recorded.FAMILIES)
def model(request):
    return vgt.load(recorded.FIXTURES / request.param)


@pytest.fixture
def captures(monkeypatch):
    """Counts captures."""
    made = []

    def capture(work, device, pool):
        work()
        made.append(work)
        return work

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(cuda_graphs, "_lies_on_cuda", lambda *_: True)
    monkeypatch.setattr(cuda_graphs, "new_pool", lambda: (0, 1))
    return made


def both(model, **settings):
    settings = SMALL | settings
    return model.generate(**settings), model.generate(**settings, graphs=False)


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 2])
def test_graphs_give_what_eager_steps_give(model, captures, decoding, tokens_per_step):
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 1:3] = False
    kinds = [
        {"prompts": ["a red circle", "two blue stars"]},
        {"prompts": ["a green cross on a white background", "a heart"]},
        {"prompts": "a red circle", "cfg": 1.0},
        {"prompts": "a star", "latent": torch.linspace(-1, 1, 512).view(1, 32, 4, 4), "mask": mask},
    ]  # fmt: skip
    for seed, kind in enumerate(kinds):
        replayed, eager = both(model, **kind, seed=seed, decoding=decoding, tokens_per_step=tokens_per_step)
        assert (replayed - eager).abs().max() < 1e-5
    assert captures


def test_a_run_of_the_same_kind_captures_nothing_new(model, captures):
    """Other prompts, another seed, another guidance: the same shapes."""
    model.generate(["a red circle"], **SMALL, seed=1)
    count = len(captures)
    replayed, eager = both(model, prompts=["a pink triangle on a navy background"], seed=2, cfg=2.0)
    assert count == 1 == len(captures)
    assert (replayed - eager).abs().max() < 1e-5


def test_what_a_stopped_run_keeps_goes_on_in_graphs(model, captures):
    settings = {"prompts": ["a red circle", "a star"], "seed": 3, **SMALL}
    beginning = vgt.Beginning()
    part = model.generate(stop_at=0.4, beginning=beginning, **settings)
    replayed = model.generate(latent=part, beginning=beginning, **settings)
    eager = model.generate(graphs=False, **settings)
    assert captures
    assert (replayed - eager).abs().max() < 1e-5


def test_steps_that_fall_and_guidance_that_ends_have_graphs_of_their_own(model, captures):
    falling = vgt.FlowSettings(3, final_steps=1)
    for kind in ({"flow": falling}, {"cfg_end": 0.5}, {"flow": falling, "cfg_end": 0.5}):
        replayed, eager = both(model, prompts=["a red circle", "two blue stars"], **kind)
        assert (replayed - eager).abs().max() < 1e-5
    assert len(captures) == 4  # 2 flow steps; 3, with and without guidance; 2 without, the others being there


def test_weights_changed_in_place_count(model, captures):
    """As a LoRA that the host patches into the weights."""
    before, _ = both(model, prompts=["a red circle"])
    model.generator.language_model.layers[0].mlp.down_proj.weight.data.mul_(1.5)
    model.generator.flow_head.time_embed[0].weight.data.mul_(1.5)
    replayed, eager = both(model, prompts=["a red circle"])
    assert (replayed - eager).abs().max() < 1e-5
    assert (replayed - before).abs().max() > 1e-3
    assert len(captures) == 1


def test_weights_that_moved_are_captured_again(model, captures):
    model.generate("a red circle", **SMALL)
    for parameter in model.generator.parameters():
        parameter.data = parameter.data.clone()
    replayed, eager = both(model, prompts="a red circle")
    assert len(captures) == 2
    assert (replayed - eager).abs().max() < 1e-5


def test_too_little_memory_falls_back_and_says_so_once(model, captures, monkeypatch, caplog):
    def capture(work, device, pool):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    for seed in (1, 2):
        replayed, eager = both(model, prompts="a red circle", seed=seed)
        assert (replayed - eager).abs().max() < 1e-5
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "out of memory" in said[0]
    assert "\n" not in said[0]
    for parameter in model.generator.parameters():  # as when the host has unloaded and loaded them
        parameter.data = parameter.data.clone()
    monkeypatch.undo()
    captured = []
    monkeypatch.setattr(cuda_graphs, "new_pool", lambda: (0, 1))
    monkeypatch.setattr(cuda_graphs, "_lies_on_cuda", lambda *_: True)
    monkeypatch.setattr(cuda_graphs, "capture", lambda work, device, pool: (work(), captured.append(work), work)[-1])
    model.generate("a red circle", **SMALL)
    assert captured


def test_what_fails_for_one_kind_of_run_is_tried_for_another(model, captures, monkeypatch):
    stand_in = cuda_graphs.capture

    def capture(work, device, pool):
        if len(captures) == 0:
            captures.append(None)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return stand_in(work, device, pool)

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    for _ in range(2):
        model.generate(["a red circle"] * 2, **SMALL)
    assert len(captures) == 1
    model.generate("a red circle", **SMALL)
    assert len(captures) == 2


def test_a_model_goes_at_once_with_its_graphs(captures):
    """Not when the garbage collector comes by: by then another model may have run out of memory."""
    model = vgt.load(recorded.FIXTURES / recorded.FAMILIES[0])
    model.generate("a red circle", **SMALL)
    generator = weakref.ref(model.generator)
    gc.disable()
    try:
        del model
        assert generator() is None
    finally:
        gc.enable()


def test_a_cancelled_run_leaves_nothing_behind(model, captures):
    class Cancel(Exception):
        pass

    def cancel(progress):
        if progress.done == 7:
            raise Cancel

    model.generate("a red circle", **SMALL, seed=3)
    with pytest.raises(Cancel):
        model.generate("a blue star", **SMALL, seed=4, progress=cancel)
    replayed, eager = both(model, prompts="a red circle", seed=5)
    assert (replayed - eager).abs().max() < 1e-5


def test_a_run_that_ended_in_nan_spoils_no_later_one(model, captures):
    noise = torch.full((1, 16, 3, 32), torch.nan)
    assert model.generate("a red circle", **SMALL, noise=noise).isnan().all()
    replayed, eager = both(model, prompts="a red circle")
    assert len(captures) == 1
    assert (replayed - eager).abs().max() < 1e-5


def test_each_prompt_length_is_the_same_kind(model, captures):
    """Where padding is hidden, too."""
    for prompt in ("a star", "a pink triangle on a navy background"):
        replayed, eager = both(model, prompts=prompt, decoding="training-consistent")
        assert (replayed - eager).abs().max() < 1e-5
    assert len(captures) == 1


def test_inference_mode_has_graphs_of_its_own(model, captures):
    with torch.inference_mode():
        model.generate("a red circle", **SMALL)
    replayed, eager = both(model, prompts="a red circle")
    assert len(captures) == 2
    assert (replayed - eager).abs().max() < 1e-5


def test_cancel_during_capture_keeps_nothing_and_is_no_failure(model, captures, monkeypatch, caplog):
    class Cancel(Exception):
        pass

    def capture(work, device, pool):
        raise Cancel

    with monkeypatch.context() as patch, pytest.raises(Cancel):
        patch.setattr(cuda_graphs, "capture", capture)
        model.generate("a red circle", **SMALL)
    replayed, eager = both(model, prompts="a red circle")
    assert len(captures) == 1
    assert (replayed - eager).abs().max() < 1e-5
    assert not caplog.records


def test_two_models_take_turns(captures):
    models = [vgt.load(recorded.FIXTURES / family) for family in recorded.FAMILIES]
    for seed in (1, 2):
        for model in models:
            replayed, eager = both(model, prompts="a red circle", seed=seed)
            assert (replayed - eager).abs().max() < 1e-5
    assert len(captures) == 2


def test_only_so_many_kinds_are_kept(model, captures):
    for batch in range(1, cuda_graphs.KEPT + 2):
        model.generate(["a red circle"] * batch, **SMALL)
    model.generate(["a red circle"] * 2, **SMALL)  # still there
    assert len(captures) == cuda_graphs.KEPT + 1
    model.generate("a red circle", **SMALL)  # pushed out
    assert len(captures) == cuda_graphs.KEPT + 2
    model.generator.graphs.clear()
    model.generate("a red circle", **SMALL)
    assert len(captures) == cuda_graphs.KEPT + 3


def test_kept_kinds_take_so_much_at_most(model, captures, monkeypatch):
    model.generate("a red circle", **SMALL)
    own = next(iter(model.generator.graphs._kept.values())).bytes()
    monkeypatch.setattr(cuda_graphs, "KEPT_BYTES", 3.5 * own)
    model.generate(["a red circle"] * 2, **SMALL)
    assert len(model.generator.graphs._kept) == 2
    model.generate(["a red circle"] * 3, **SMALL)
    assert len(model.generator.graphs._kept) == 1


def test_graphs_of_a_generator_share_one_pool(model, captures, monkeypatch):
    pools = []

    def capture(work, device, pool):
        work()
        pools.append(pool)
        return work

    made = iter(range(9))
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(cuda_graphs, "new_pool", lambda: next(made))
    for batch in (1, 2):
        model.generate(["a red circle"] * batch, **SMALL)
    model.generator.graphs.clear()
    model.generate("a red circle", **SMALL)
    assert pools == [0, 0, 1]


def test_what_graphs_hold_idle_is_reported(model, captures, monkeypatch):
    """PyTorch counts a pool's unused blocks as free."""
    segments = [
        {"segment_pool_id": (0, 1), "total_size": 30, "allocated_size": 10},
        {"segment_pool_id": (0, 0), "total_size": 50, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    said = []
    model.generator.graphs.report = said.append
    model.generate("a red circle", **SMALL)
    model.generator.graphs.clear()
    assert said[-3:] == [0, 20, 0]


IN_THE_HOST = """
import sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management as memory, torch
from pack.nodes import sampling
from pack.nodes.host import drawing, loading
from pack.vgt.run import graphs
from pack.vgt.sampling import PUBLISHED, SamplingSettings
made = []
def capture(work, device, pool):
    work()
    made.append(work)
    return work
graphs.capture, graphs._lies_on_cuda, graphs.new_pool = capture, lambda *_: True, lambda: (0, 1)
graphs.GraphCache.idle_bytes = lambda self: 1000 * len(self._kept)
reserve = memory.extra_reserved_memory()
loading.register_model_folder()
model, _ = loading.load_model(loading.model_names()[0], "fp32")  # the bundled one
settings = dict(prompt="a red circle", negative_prompt="", width=112, height=112, batch_size=1, denoise=1.0, seed=1)
settings |= dict(cfg=4.5, tokens_per_step=1, order="random", decoding="published", grouping="uniform")
published = SamplingSettings(flow=PUBLISHED.flow, cfg_end=PUBLISHED.cfg_end)
with torch.inference_mode():
    for before in ("nothing", "nothing", "unload", "no room"):
        if before == "unload":
            memory.unload_all_models()
        if before == "no room":
            drawing.free_memory = lambda patcher: 0
        sampling.sample(model, None, published, **settings)
        print(len(made), memory.extra_reserved_memory() - reserve, end=" ")
    memory.unload_all_models()
    print(memory.extra_reserved_memory() - reserve, end=" ")
    sampling.sample(model, None, published, **settings)
    del model
    import gc; gc.collect()
    print(memory.extra_reserved_memory() - reserve)
"""


def test_the_host_keeps_graphs_between_runs_and_drops_them_with_the_weights(tmp_path):
    (tmp_path / "pack").symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_HOST],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{comfyui_path()}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # Captures, and what the host is told that it has less.
    assert done.stdout.split() == ["1", "1000", "1", "1000", "2", "1000", "3", "1000", "0", "0"], done.stderr


def test_no_graphs_on_the_processor(model, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "capture", None)
    model.generate("a red circle", **SMALL)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("tokens_per_step", [1, 2])
def test_graphs_on_a_cuda_device(dtype, limit, tokens_per_step):
    for family in recorded.FAMILIES:
        model = vgt.load(recorded.FIXTURES / family, "cuda", dtype)
        for seed in (1, 2):
            replayed, eager = both(model, prompts="a red circle", seed=seed, tokens_per_step=tokens_per_step)
            assert (replayed - eager).abs().max() < limit
        assert model.generator.graphs._kept
