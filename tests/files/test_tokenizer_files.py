"""The tokenizers made from the Qwen2.5 vocabulary that ComfyUI carries, against transformers'."""

import json
import shutil

import pytest

from host import comfyui_path
from vgt.families import family
from vgt.files.tokenizer_files import build_tokenizer_json
from vgt.prompt import PromptTokenizer

TEXTS = [
    "a photo of a cat",
    "it's  12345 ünïcödé 漢字 🎨\n\n  x\ty …",
    "e\u0301 ( <img> ) <|im_end|><tool_call>",
    " leading, trailing  ",
    "",
]


@pytest.fixture(scope="module")
def vocabulary():
    return comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer"


@pytest.fixture(scope="module")
def qwen(vocabulary):
    return family("qwen2_5_vl").host_tokenizer(vocabulary)


def test_equals_transformers(vocabulary, qwen):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ours, reference = Tokenizer.from_str(qwen.decode()), AutoTokenizer.from_pretrained(vocabulary)
    for text in TEXTS:
        assert ours.encode(text).ids == reference.encode(text), text


def test_image_start_of_each_family(vocabulary, qwen):
    assert PromptTokenizer(qwen, "<|endoftext|>").image_start == [20092, 29]  # `<img` and `>`
    internvl3 = family("internvl3").host_tokenizer(vocabulary)
    assert PromptTokenizer(internvl3, "<|endoftext|>").image_start == [151665]
    # Qwen3 has four tokens more; its last, `</think>`, is 151668.
    later = family("internvl3_5").host_tokenizer(vocabulary)
    assert PromptTokenizer(later, "<|endoftext|>").image_start == [151669]
    assert PromptTokenizer(family("qwen3_vl").host_tokenizer(vocabulary), "</think>").image_start == [20092, 29]


def test_a_vocabulary_that_does_not_fit_is_refused(vocabulary, tmp_path):
    entries = json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8"))
    entries["one too many"] = len(entries)
    (tmp_path / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    for name in ("merges.txt", "tokenizer_config.json"):
        shutil.copy(vocabulary / name, tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        build_tokenizer_json(tmp_path, {151643: ("<|endoftext|>", True)})


def test_templates(qwen):
    tokenizer = PromptTokenizer(qwen, "<|endoftext|>")
    text = tokenizer([" a cat "], [None])
    decoded = [tokenizer._tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in text.ids]
    assert decoded[0] == "<|im_start|>user\nGenerate an image: a cat<|im_end|>\n<|im_start|>assistant\n"
    assert decoded[1].startswith("<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n<|endoftext|>")
