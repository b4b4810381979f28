import argparse
import copy
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vgt
from drawn import folder as drawings_folder
from vgt.evaluation import benchmarks, command, reconstruction, results, scenes, sweep
from vgt.evaluation.drawing import BLOCK, batches, draw
from vgt.run.flow import FlowSettings
from vgt.sampling import SamplingSettings
from vgt.scenes.world import CATEGORIES, render, sample_scene, to_pixels

FIXTURES = Path(__file__).parents[1] / "fixtures"
QUICK = SamplingSettings(56, 56, flow=FlowSettings(steps=2)).filled()


@cache
def model():
    return vgt.load(FIXTURES / "qwen2_5_vl")


def test_batches_stay_within_blocks():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([0, BLOCK - 1, BLOCK, BLOCK + 2], 16)) == [[0, BLOCK - 1], [BLOCK, BLOCK + 2]]
    with pytest.raises(ValueError, match="batch"):
        list(batches([0], 0))


def test_a_picture_depends_on_its_number_and_not_on_its_batch():
    settings = replace(QUICK, decoding="training-consistent")
    texts = ["a red star", "two green hearts on a navy background", "a circle"]
    together = draw(model(), texts, [3, 4, 5], settings)
    assert together.shape == (3, 3, 56, 56) and 0 <= together.min() <= together.max() <= 1
    assert torch.allclose(draw(model(), texts[1:2], [4], settings), together[1:2], atol=2e-3)


def test_the_scenes_score(tmp_path):
    result = scenes.score(model(), 12, QUICK, folder=tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 12
    assert set(result["categories"]) == set(CATEGORIES) and result["settings"]["height"] == 56
    assert all(category["total"] == 2 for category in result["categories"].values())
    assert 0 <= result["score"] <= 0.2 and result["pictures"][0]["wrong"]
    assert "| overall" in scenes.table(result) and json.dumps(result)
    assert scenes.prompts(8) == scenes.prompts(20)[:8]
    with pytest.raises(ValueError, match="count"):
        scenes.score(model(), 5, QUICK)


def test_a_perfect_painter_scores_one():
    """The whole way of the score with a model that paints what it is told."""
    asked = scenes.prompts(24)
    drawn = []

    def generate(texts, *, noise, **_):
        drawn.extend(texts)
        return torch.tensor([[caption for _, caption in asked].index(text) for text in texts])

    def decode(numbers):
        pictures = []
        for number in numbers.tolist():
            rng = random.Random(f"{scenes.PROMPT_SEED} test {number}")
            pictures.append(to_pixels(render(sample_scene(rng, "test", asked[number][0].category)[0], 112)))
        return torch.stack(pictures) * 2 - 1

    painter = SimpleNamespace(generate=generate, decode=decode, config=SimpleNamespace(token_pixels=28))
    result = scenes.score(painter, 24, SamplingSettings(112, 112).filled())
    assert result["score"] == 1 and drawn == [caption for _, caption in asked]


def test_geneval_is_laid_out_for_its_scorer_and_goes_on(tmp_path):
    lines = [{"tag": "colors", "include": [], "prompt": f"a photo of {n} stars"} for n in range(3)]
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    folder = tmp_path / "drawn"

    def files():
        return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

    benchmarks.geneval(model(), metadata, folder, QUICK)
    before = files()
    assert sorted(before) == sorted(
        f"{n:05}/{name}" for n in range(3) for name in ("metadata.jsonl", *(f"samples/{k:04}.png" for k in range(4)))
    )
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == lines[1]
    lost = folder / "00001/samples/0002.png"
    with Image.open(lost) as image:
        assert image.size == (56, 56)
        pixels = image.tobytes()
    lost.unlink()
    benchmarks.geneval(model(), metadata, folder, QUICK)
    after = files()
    assert [name for name in after if name.endswith(".png") and after[name] != before[name]] == [
        "00001/samples/0002.png"
    ]
    # Its batch is another one, of equal prompts, so it is the same picture but for rounding.
    with Image.open(lost) as image:
        assert abs(np.frombuffer(pixels, "u1").astype(int) - np.frombuffer(image.tobytes(), "u1")).max() <= 1
    with pytest.raises(ValueError, match="another run"):
        benchmarks.geneval(model(), metadata, folder, replace(QUICK, height=84, width=84))
    trained_on = copy.deepcopy(model())
    trained_on.generator.flow_head.output_proj.bias.data += 0.1
    with pytest.raises(ValueError, match=r"another run \(weights "):
        benchmarks.geneval(trained_on, metadata, folder, QUICK)
    metadata.write_text(json.dumps({"prompt": "a heart"}))
    with pytest.raises(ValueError, match=r"another run \(prompts "):
        benchmarks.geneval(model(), metadata, folder, QUICK)


def test_processes_share_the_prompts(tmp_path, monkeypatch):
    metadata = tmp_path / "prompts.jsonl"
    metadata.write_text('{"prompt": "a star"}\n\n' * 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, drawn in ((0, {"00000", "00002"}), (1, {"00000", "00001", "00002"})):
        monkeypatch.setenv("RANK", str(rank))
        benchmarks.geneval(model(), metadata, tmp_path / "drawn", QUICK)
        assert {path.name for path in (tmp_path / "drawn").iterdir()} == drawn


@pytest.mark.parametrize(
    "text, message", [("", "empty"), ("{]", "line 1"), ('{"text": "a"}', "prompt"), ("[1]", "prompt")]
)
def test_bad_metadata(tmp_path, text, message):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.geneval(None, tmp_path / "prompts.jsonl", tmp_path / "drawn", QUICK)


def test_dpg_is_laid_out_for_its_scorer_and_goes_on(tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("posters7", "whoops2", "12"):
        (prompts / f"{name}.txt").write_text(f"a picture, {name}\n")
    folder = tmp_path / "drawn"
    benchmarks.dpg(model(), prompts, folder, QUICK)
    assert {path.name for path in folder.iterdir()} == {"posters7.png", "whoops2.png", "12.png"}
    with Image.open(folder / "12.png") as image:
        assert image.size == (112, 112)
    before = (folder / "12.png").stat().st_mtime_ns
    (folder / "posters7.png").unlink()
    benchmarks.dpg(model(), prompts, folder, QUICK)
    assert (folder / "posters7.png").exists() and (folder / "12.png").stat().st_mtime_ns == before
    (prompts / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        benchmarks.dpg(model(), prompts, folder, QUICK)
    with pytest.raises(ValueError, match=r"\.txt"):
        benchmarks.dpg(model(), folder, folder, QUICK)


def drawn_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mjhq_is_laid_out_like_its_reference_pictures_and_goes_on(tmp_path):
    entries = {f"{n}0a5": {"category": ("art", "food")[n % 2], "prompt": f" a picture, {n}"} for n in range(3)}
    metadata, folder = tmp_path / "meta_data.json", tmp_path / "drawn"
    metadata.write_text(json.dumps(entries))
    benchmarks.mjhq(model(), metadata, folder, QUICK)
    assert drawn_files(folder) == ["art/00a5.png", "art/20a5.png", "food/10a5.png"]
    with Image.open(folder / "art/00a5.png") as image:
        assert image.size == (56, 56)
    before = (folder / "art/00a5.png").stat().st_mtime_ns
    (folder / "food/10a5.png").unlink()
    benchmarks.mjhq(model(), metadata, folder, QUICK)
    assert (folder / "food/10a5.png").exists() and (folder / "art/00a5.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "empty"),
        ("{]", "no list"),
        ('["a"]', "no list"),
        ('{"a": {"prompt": "x"}}', "no list"),
        ('{"../a": {"category": "art", "prompt": "x"}}', "cannot be the name"),
        ('{"a": {"category": "..", "prompt": "x"}}', "cannot be the name"),
    ],
)
def test_bad_mjhq_metadata(tmp_path, text, message):
    (tmp_path / "meta_data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.mjhq(None, tmp_path / "meta_data.json", tmp_path / "drawn", QUICK)


@pytest.mark.parametrize("column", ["prompt_en", "prompt_cn"])
def test_oneig_is_laid_out_for_its_scorers_and_goes_on(tmp_path, column):
    table, folder = tmp_path / "OneIG-Bench.csv", tmp_path / "images"
    rows = [f'{category},000,"a picture, {category}",x\n' for category in benchmarks.ONEIG_FOLDERS]
    table.write_text(f"category,id,{column},class\n" + "".join(rows), encoding="utf-8")
    benchmarks.oneig(model(), table, folder, "tiny", QUICK)
    pictures = [
        f"{kind}/tiny/000.webp" for kind in ("anime", "human", "multilingualism", "object", "reasoning", "text")
    ]
    assert drawn_files(folder) == sorted([*pictures, "tiny.settings.json"])
    with Image.open(folder / pictures[0]) as image:
        assert image.size == (112, 112) and image.format == "WEBP"
        grid = image.tobytes()
    first = folder / pictures[0]
    before = (folder / pictures[1]).stat().st_mtime_ns
    first.unlink()
    benchmarks.oneig(model(), table, folder, "tiny", QUICK)
    with Image.open(first) as image:
        assert np.abs(np.frombuffer(grid, "u1").astype(int) - np.frombuffer(image.tobytes(), "u1")).mean() < 1
    assert (folder / pictures[1]).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another run"):
        benchmarks.oneig(model(), table, folder, "tiny", replace(QUICK, seed=1))
    benchmarks.oneig(model(), table, folder, "other", replace(QUICK, seed=1))  # pictures of several models lie together
    with pytest.raises(ValueError, match="cannot be the name"):
        benchmarks.oneig(model(), table, folder, "../other", QUICK)


@pytest.mark.parametrize(
    "text, message",
    [
        ("category,id,prompt_en\n", "empty"),
        ("category,id\nPortrait,000\n", "prompt 1"),
        ("category,id,prompt_en\nPortrait,000,x\nLandscape,001,x\n", "prompt 2"),
        ("category,id,prompt_en\nPortrait,../0,x\n", "cannot be the name"),
    ],
)
def test_bad_oneig_table(tmp_path, text, message):
    (tmp_path / "OneIG-Bench.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.oneig(None, tmp_path / "OneIG-Bench.csv", tmp_path / "images", "tiny", QUICK)


def off_by(amount):
    """A tokenizer whose pictures are `amount` too bright."""
    device = torch.device("cpu")
    return SimpleNamespace(device=device, encode=lambda pixels: pixels, decode=lambda x: (x + amount) * 2 - 1)


def test_reconstruction_scores(tmp_path):
    pytest.importorskip("torchmetrics")
    grey = [torch.full((3, 56, 84), 0.5)] * 3 + [torch.full((3, 56, 56), 0.25)]
    result = reconstruction.score(off_by(0.1), iter(grey), batch=2)
    assert result["count"] == 4 and result["psnr"] == pytest.approx(20, abs=1e-3) and result["rfid"] is None
    pictures = list(reconstruction.scene_images(3, 112))
    result = reconstruction.score(off_by(0), iter(pictures), score_size=64)
    assert result["ssim"] == pytest.approx(1) and result["psnr"] > 90
    with pytest.raises(ValueError, match="no images"):
        reconstruction.score(off_by(0), iter(()))
    with pytest.raises(FileNotFoundError, match="Inception"):
        reconstruction.score(off_by(0), iter(pictures), inception_weights=tmp_path / "none.pth")


def test_a_folder_of_images(tmp_path):
    (tmp_path / "below").mkdir()
    Image.new("RGB", (100, 60), (255, 0, 0)).save(tmp_path / "below/a.png")
    Image.new("L", (28, 28), 128).save(tmp_path / "b.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    images = list(reconstruction.folder_images(tmp_path, 28))
    assert [tuple(image.shape) for image in images] == [(3, 28, 28), (3, 56, 84)]
    assert images[1][:, 0, 0].tolist() == [1, 0, 0]
    assert all(image.shape == (3, 56, 56) for image in reconstruction.folder_images(tmp_path, 28, 56))
    (tmp_path / "c.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"c\.png"):
        list(reconstruction.folder_images(tmp_path, 28))


def test_sweeps_results_and_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "TOKENS_PER_STEP", (1, 4))
    for _ in range(2):
        sweep.run(model(), "tokens-per-step", tmp_path, 6, QUICK)
    with pytest.raises(ValueError, match="another model, count or setting"):
        sweep.run(model(), "tokens-per-step", tmp_path, 12, QUICK)
    found = results.read([tmp_path])
    assert len(found) == 6
    assert results.markdown(found).count("\n") == 8
    curves = results.lines(found, "tokens_per_step")
    assert set(curves) == {
        f"{d}, {g} groups" for d in ("published", "training-consistent") for g in ("uniform", "growing")
    }
    assert all([x for x, _ in points] == [1, 4] for points in curves.values())
    assert "one, step 7 |" in results.markdown([{**found[0], "label": "one", "training_step": 7}])
    assert results.lines([{**found[0], "training_step": 7}], "training_step") == {"": [(7, found[0]["score"])]}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="other"):
        results.read([tmp_path])


def test_a_sweep_over_drawings(tmp_path, monkeypatch):
    """With as many tokens a step as a picture has, and a table of its own beside that of shapes."""
    monkeypatch.setattr(sweep, "TOKENS_PER_STEP", (1, 4, 8))
    folder = drawings_folder(tmp_path / "drawings")
    arguments = ["--drawings", folder, "--count", 6, "--size", 56, "--steps", 1]
    run("sweep", FIXTURES / "internvl3", "tokens-per-step", tmp_path / "results", *arguments)
    found = results.read([tmp_path / "results"])
    assert {result["settings"]["tokens_per_step"] for result in found} == {1, 4}
    assert results.lines(found, "tokens_per_step")
    with pytest.raises(ValueError, match="another model, count or setting"):
        run("sweep", FIXTURES / "internvl3", "tokens-per-step", tmp_path / "results", *arguments[2:])
    shapes = scenes.score(model(), 6, QUICK)
    tables = results.markdown([{"file": "shapes", **shapes}, *found]).split("\n\n")
    assert "color_attr" in tables[0] and "background" in tables[1]


def test_curves_become_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    found = [
        {"kind": "scenes", "label": label, "score": score, "settings": {**QUICK.to_dict(), "cfg": cfg}}
        for label in ("one", "other")
        for cfg, score in ((1.0, 0.5), (3.0, 0.9))
    ]
    results.plot(found, "cfg", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 600
    with pytest.raises(ValueError, match="axis"):
        results.plot(found, "seed", tmp_path / "curve.png")


def run(*arguments):
    """A command of `evaluate`."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_commands(tmp_path, capsys):
    def told_by(*arguments):
        run(*arguments)
        return capsys.readouterr().out

    checkpoint, out = FIXTURES / "internvl3", tmp_path / "scenes.json"
    told = told_by("scenes", checkpoint, "--count", 6, "--size", 56, "--steps", 2, "--label", "random", "--json", out)
    assert "| single_object |" in told and json.loads(out.read_text())["label"] == "random"
    assert "random" in told_by("results", out)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/a.txt").write_text("a star")
    told = told_by("dpg", checkpoint, tmp_path / "prompts", tmp_path / "drawn", "--size", 56, "--steps", 2)
    assert "--resolution 56" in told and (tmp_path / "drawn/a.png").exists()
    (tmp_path / "meta_data.json").write_text('{"a": {"category": "art", "prompt": "a star"}}')
    told = told_by("mjhq", checkpoint, tmp_path / "meta_data.json", tmp_path / "mjhq", "--size", 56, "--steps", 2)
    assert "compute_fid" in told and (tmp_path / "mjhq/art/a.png").exists()
    (tmp_path / "OneIG-Bench.csv").write_text("category,id,prompt_en\nPortrait,000,a star\n")
    told = told_by("oneig", checkpoint, tmp_path / "OneIG-Bench.csv", tmp_path / "images", "--size", 56, "--steps", 2)
    assert "2,2" in told and (tmp_path / "images/human/internvl3/000.webp").exists()
    pytest.importorskip("torchmetrics")
    told = told_by("reconstruction", checkpoint, "--scenes", 3, "--size", 112)
    assert "PSNR" in told and "not measured" in told
