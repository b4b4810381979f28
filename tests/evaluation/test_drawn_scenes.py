"""The score of drawings: a painter who draws what was asked gets all of it, one who draws something else nothing."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import drawn
from vgt.__main__ import main
from vgt.evaluation import drawn_scenes, scenes
from vgt.sampling import SamplingSettings
from vgt.scenes.drawings import CATEGORIES, Drawings, render, sample
from vgt.scenes.world import to_pixels

SIZE = 224


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return Drawings(drawn.folder(tmp_path_factory.mktemp("drawings")))


def painter(drawings, asked, mistaken=()):
    """A model whose pictures are renders of the prompts' scenes, of another prompt's for those in `mistaken`."""

    def picture(number):
        index = (number + 5) % len(asked) if number in mistaken else number  # of the same category
        rng = random.Random(f"{drawn_scenes.PROMPT_SEED} test {index}")
        scene, _, caption = sample(drawings, rng, "test", CATEGORIES[index % len(CATEGORIES)])
        assert number in mistaken or caption == asked[number][1]
        return to_pixels(render(drawings, scene, SIZE))

    seen = iter(range(len(asked)))

    def generate(prompts, **_):
        return torch.stack([picture(next(seen)) for _ in prompts])

    config = SimpleNamespace(token_pixels=28)
    return SimpleNamespace(config=config, generate=generate, decode=lambda latent: latent * 2 - 1, encode=lambda p: p)


def test_the_score(drawings, tmp_path):
    asked = drawn_scenes.prompts(drawings, 30)
    assert asked[:7] == drawn_scenes.prompts(drawings, 7)
    settings = SamplingSettings(SIZE, SIZE).filled()
    perfect = drawn_scenes.score(painter(drawings, asked), drawings, 30, settings, folder=tmp_path / "pictures")
    assert perfect["score"] == 1 and {c["total"] for c in perfect["categories"].values()} == {6}
    assert len(list((tmp_path / "pictures").glob("*-right.png"))) == 30
    assert "| counting | 6 | 6 |" in scenes.table(perfect) and json.dumps(perfect)
    worse = drawn_scenes.score(painter(drawings, asked, range(0, 30, 5)), drawings, 30, settings)
    scores = {name: category["score"] for name, category in worse["categories"].items()}
    assert scores.pop("drawing") <= 0.2 and set(scores.values()) == {1.0}
    with pytest.raises(ValueError, match="at least 5"):
        drawn_scenes.score(None, drawings, 4, settings)


def test_what_a_tokenizer_gives_back_is_judged(drawings):
    keeps = painter(drawings, [])
    assert drawn_scenes.reconstructed(keeps, drawings, 20, SIZE)["score"] == 1
    loses = SimpleNamespace(encode=lambda pixels: pixels, decode=lambda latent: torch.full_like(latent, 0.98))
    assert drawn_scenes.reconstructed(loses, drawings, 10, SIZE)["score"] == 0


def test_the_command_line_knows_both_worlds(tmp_path, capsys):
    """On a model that draws noise, and a few prompts only."""
    folder, checkpoint = drawn.folder(tmp_path / "drawings"), Path(__file__).parents[1] / "fixtures/qwen2_5_vl"
    out = tmp_path / "result.json"
    for words in (
        ["scenes", checkpoint, "--count", 6, "--size", 56, "--steps", 2, "--drawings", folder, "--json", out],
        ["reconstruction", checkpoint, "--scenes", 5, "--size", 56, "--drawings", folder],
    ):
        assert main(["evaluate", *map(str, words)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["drawings"]["kind"] == "drawings"
    told = capsys.readouterr().out
    assert "| counting | " in told and "Told for what they are" in told
    assert main(["evaluate", "reconstruction", str(checkpoint), str(tmp_path), "--drawings", str(folder)]) == 1
    assert "--drawings needs --scenes" in capsys.readouterr().err
