"""python -m vgt as people use it: names of files, several prompts, devices that are not there, and what a PNG holds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bundled import NAME, SIDE
from vgt.__main__ import main

FAST = ["--steps", "2", "--device", "cpu"]


@pytest.fixture
def command(tmp_path, monkeypatch, bundled_model, capsys):
    """Run a command in a folder of its own, with the model's path for MODEL → (status, what stood on stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(bundled_model) if argument == "MODEL" else argument for argument in arguments])
        return status, capsys.readouterr().err.strip()

    run.folder = tmp_path
    return run


def refused(answer):
    """The sentence of a command that was refused."""
    status, said = answer
    assert status == 1 and said.startswith("vgt: ") and "\n" not in said and said.endswith((".", ")"))
    return said


def test_a_png_says_what_it_was_drawn_from(command):
    status, said = command("generate", "MODEL", "a red circle", "--seed", "7", *FAST, "new/one.png")
    assert status == 0 and "never seen" not in said
    with Image.open(command.folder / "new" / "one.png") as picture:
        kept = json.loads(picture.text["vgt"])
        assert picture.size == (SIDE, SIDE)
    assert (kept["prompt"], kept["seed"], kept["steps"], kept["width"]) == ("a red circle", 7, 2, SIDE)
    assert kept["model"] == NAME


@pytest.mark.parametrize("ending, format", [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_the_ending_chooses_the_format(command, ending, format):
    assert command("generate", "MODEL", "a red circle", f"one.{ending}", *FAST)[0] == 0
    with Image.open(command.folder / f"one.{ending}") as picture:
        assert picture.format == format


def test_several_prompts_a_file_of_them_and_a_batch_are_numbered(command):
    (command.folder / "more.txt").write_text("a green star\n\na heart\n")
    many = ["generate", "MODEL", "a red circle", "out.png", "--prompts-file", "more.txt", "--batch", "2", *FAST]
    assert command(*many)[0] == 0
    names = sorted(path.name for path in command.folder.glob("*.png"))
    assert names == [f"out-{index}.png" for index in range(6)]
    prompts = []
    for name in names:
        with Image.open(command.folder / name) as picture:
            prompts.append(json.loads(picture.text["vgt"])["prompt"])
    assert prompts == ["a red circle"] * 2 + ["a green star"] * 2 + ["a heart"] * 2
    assert command(*many)[0] == 0  # its own numbering is written over
    alone = command("generate", "MODEL", "a green star", "alone.png", *FAST)
    assert alone[0] == 0
    one, other = (np.asarray(Image.open(command.folder / name)).astype(int) for name in ("alone.png", "out-2.png"))
    assert abs(one - other).max() <= 1  # of 255: a batch rounds otherwise


def test_a_file_that_is_there_stays_without_force(command):
    (command.folder / "one.png").write_bytes(b"mine")
    one = ["generate", "MODEL", "a red circle", "one.png", *FAST]
    assert "one.png is there already" in refused(command(*one))
    assert (command.folder / "one.png").read_bytes() == b"mine"
    assert command(*one, "--force")[0] == 0
    assert "is there already" in refused(command("reconstruct", "MODEL", "one.png", "one.png"))


def test_words_never_seen_are_named(command):
    status, said = command("generate", "MODEL", "a Gryphon and a red square", "cat.png", *FAST)
    assert status == 0
    assert "vgt: never seen: gryphon" in said.splitlines()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["generate", "MODEL", "a cat", "cat.gif"], "cat.gif has no ending of a picture"),
        (["generate", "MODEL", "a cat", "cat"], "cat has no ending of a picture"),
        (["generate", "MODEL", "cat.png"], "There is no prompt"),
        (["generate", "MODEL", "a cat", "text.txt/cat.png"], "is no folder"),
        (["generate", "MODEL", "a cat", "folder.png"], "is a folder"),
        (["generate", "MODEL", "a cat", "cat.png", "--batch", "0"], "--batch is 0"),
        (["generate", "MODEL", "a cat", "cat.png", "--device", "foo"], "--device foo cannot be used here"),
        (["generate", "MODEL", "a cat", "cat.png", "--prompts-file", "none.txt"], "There is no none.txt"),
        (
            ["generate", "MODEL", "cat.png", "--prompts-file", "folder.png/bytes"],
            "folder.png/bytes is no text in UTF-8",
        ),
        (["convert", "MODEL", "text.txt"], "text.txt is there already"),
        (["convert", "none", "out.safetensors"], "There is no model at none"),
        (["merge", "MODEL", "none.safetensors", "text.txt"], "text.txt is there already"),
        (["latent-rgb", "MODEL", "folder.png", "text.txt"], "text.txt is there already"),
        (["generate", "MODEL", "a cat", "cat.png", "--plan", "text.txt"], "text.txt is there already"),
        (["generate", "MODEL", "a cat", "cat.png", "--latent", "text.txt"], "text.txt is there already"),
        (["merge", "MODEL", "none.safetensors", "text.txt/out.safetensors"], "is no folder"),
        (["generate", "none.safetensors", "a cat", "cat.png"], "none.safetensors"),
        (["reconstruct", "MODEL", "none.png", "out.png"], "There is no none.png"),
        (["reconstruct", "MODEL", "text.txt", "out.png"], "text.txt is no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_is_one_sentence_before_anything_is_drawn(command, arguments, says):
    (command.folder / "text.txt").write_text("hello")
    (command.folder / "folder.png").mkdir()
    (command.folder / "folder.png" / "bytes").write_bytes(b"\xff\xfe\x00")
    before = sorted(command.folder.rglob("*"))
    assert says in refused(command(*arguments))
    assert sorted(command.folder.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_missing_driver_is_a_sentence(command):
    assert "--device cuda cannot be used here" in refused(
        command("generate", "MODEL", "a cat", "cat.png", "--device", "cuda")
    )


def test_help_shows_every_setting_of_a_run_with_its_default(command, capsys):
    with pytest.raises(SystemExit):
        command("generate", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in ("width", "seed", "cfg", "tokens-per-step", "order", "steps", "solver", "temperature", "dtype"):
        assert f"--{option} " in text
    assert text.count("default") >= 15


def test_an_unknown_option_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command("generate", "MODEL", "a cat", "cat.png", "--sed", "3")
    with pytest.raises(SystemExit):
        command("reconstruct", "MODEL", "a.png", "b.png", "c.png")
