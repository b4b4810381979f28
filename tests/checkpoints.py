"""What the tests of model files share: the recorded checkpoints, and how a refusal must read."""

import shutil
from pathlib import Path

import pytest
import torch

import vgt
from recorded import FIXTURES
from vgt.files.reading import read_checkpoint
from vgt.files.torch_file import read_torch_file


def make_folder(family, folder):
    for part in ("base", "dc_ae"):
        shutil.copytree(FIXTURES / family / part, folder / part)
    return folder


def full_state(family):
    return dict(read_torch_file(FIXTURES / family / "iter_5000.pth")["state_dict"])


def tokenizer_state(family):
    return dict(read_torch_file(next((FIXTURES / family).glob("vgt_ae_*.pth"))))


def reference(family):
    return read_checkpoint(FIXTURES / family)


def same(found, expected):
    assert found.config == expected.config
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name].contiguous(), tensor.contiguous()), name


def refused(path, *words):
    """The sentence with which `path` is refused; it names the file and holds the words."""
    with pytest.raises(vgt.CheckpointError) as caught:
        vgt.load(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 600
    for word in (Path(path).name, *words):
        assert word in sentence
    return sentence
