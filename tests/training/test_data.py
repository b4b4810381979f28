"""Pictures with captions: folders, lists, shards, the order of an epoch, what is said of unusable ones; latents."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import drawn
from vgt.training import latents
from vgt.training.data import DataError, EndlessShuffle, batches, caption_of, open_data, open_held_out, read
from vgt.training.settings import TrainingError


def test_every_epoch_has_each_item_once_and_processes_share_them():
    whole = iter(EndlessShuffle(10, 3, 0, 0, 1))
    first, second = [next(whole) for _ in range(10)], [next(whole) for _ in range(10)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    shares = [iter(EndlessShuffle(10, 3, 4, rank, 2)) for rank in (0, 1)]
    assert [next(share) for _ in range(3) for share in shares] == first[4:10]


def folder_data(folder):
    return {"kind": "folder", "size": 28, "path": str(folder)}


def picture(path, size=(40, 30)):
    Image.new("RGB", size, (200, 30, 30)).save(path)


def test_folders_of_pictures(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red thing\n")
    pixels, caption = open_data(folder_data(tmp_path), captions=True)[0]
    assert (pixels.shape, caption) == ((3, 28, 28), "a red thing")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "all.jsonl").write_text('{"image": "a.png", "caption": "from the list"}\n')
    assert open_data(folder_data(tmp_path), captions=True)[0][1] == "from the list"
    (tmp_path / "all.jsonl").write_text('{"image": "a.png", "caption": "a line\u2028broken"}\n', encoding="utf-8")
    assert open_data(folder_data(tmp_path), captions=True)[0][1] == "a line\u2028broken"


def test_unusable_data_is_named(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        open_data(folder_data(tmp_path / "nothing"), captions=True)
    with pytest.raises(DataError, match="holds no pictures"):
        open_data(folder_data(tmp_path), captions=True)
    (tmp_path / "orphan.txt").write_text("a caption")
    with pytest.raises(DataError, match=r"orphan.txt is a caption without its picture"):
        open_data(folder_data(tmp_path), captions=True)
    (tmp_path / "orphan.txt").unlink()
    picture(tmp_path / "bare.png")
    with pytest.raises(DataError, match=r"bare.png has no caption"):
        open_data(folder_data(tmp_path), captions=True)
    assert len(open_data(folder_data(tmp_path), captions=False)) == 1
    (tmp_path / "bare.png").write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^[^\n]*bare.png cannot be read as a picture [^\n]*$"):
            next(read(open_data(folder_data(tmp_path), captions=False), 1, workers))
    whole = io.BytesIO()
    Image.effect_noise((40, 30), 50).save(whole, "png")
    (tmp_path / "bare.png").write_bytes(whole.getvalue().replace(b"IDAT", b"\0\0\0\0"))  # a SyntaxError of Pillow's
    with pytest.raises(DataError, match=r"bare.png cannot be read as a picture"):
        open_data(folder_data(tmp_path), captions=False)[0]
    (tmp_path / "list.jsonl").write_text('{"image": "gone.png", "caption": "c"}\n')
    with pytest.raises(DataError, match=r"line 1, is a caption without its picture gone.png"):
        open_data(folder_data(tmp_path), captions=True)
    picture(tmp_path / "bare.png")
    for line, message in (
        ('{"image": "bare.png", "caption": null}', r"line 1, must be"),
        ('{"image": "bare.png", "caption": " "}', r"bare.png has no caption; write it into .*list.jsonl"),
    ):
        (tmp_path / "list.jsonl").write_text(line)
        with pytest.raises(DataError, match=message):
            open_data(folder_data(tmp_path), captions=True)
    (tmp_path / "list.jsonl").write_bytes(b'{"image": "bare.png", "caption": "\xff"}')
    with pytest.raises(DataError, match=r"list.jsonl is not UTF-8 text"):
        open_data(folder_data(tmp_path), captions=True)
    (tmp_path / "another.jsonl").write_text("")
    with pytest.raises(DataError, match=r"holds several .jsonl files"):
        open_data(folder_data(tmp_path), captions=True)
    with pytest.raises(DataError, match="must be a multiple of 28"):
        open_data({"kind": "scenes", "size": 100}, captions=True, token_pixels=28)


def write_shards(folder, samples):
    """`samples` captions, two to a shard, each with a picture."""
    webdataset = pytest.importorskip("webdataset")
    for shard in range(0, len(samples), 2):
        with webdataset.TarWriter(str(folder / f"shard-{shard // 2}.tar")) as tar:
            for index, caption in enumerate(samples[shard : shard + 2], start=shard):
                pixels = torch.full((30, 40, 3), index * 0.1).numpy()
                tar.write({"__key__": f"{index}", "png": pixels, "txt": caption})
    return {"kind": "webdataset", "size": 28, "path": str(folder / f"shard-{{0..{len(samples) // 2 - 1}}}.tar")}


def test_shards_go_on_for_ever_in_another_order_every_epoch(tmp_path):
    dataset = open_data(write_shards(tmp_path, list("abcdefgh")), captions=True)
    assert sorted(caption for _, caption in dataset) == list("abcdefgh")
    for workers in (0, 2):
        feed = batches(dataset, 4, seed=0, first=0, rank=0, world=1, workers=workers)
        seen = [caption for _, (_, captions) in zip(range(6), feed) for caption in captions]
        epochs = [seen[:8], seen[8:16], seen[16:]]
        assert all(sorted(epoch) == list("abcdefgh") for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_unusable_shards_are_named_also_by_the_processes_that_read(tmp_path):
    shards = write_shards(tmp_path, list("abcd"))
    with pytest.raises(DataError, match=r"There is no shard .*shard-2.tar"):
        open_data({**shards, "path": str(tmp_path / "shard-{0..2}.tar")}, captions=True)
    with pytest.raises(DataError, match=r"There are 2 shards for 3 reading processes"):
        next(read(open_data(shards, captions=True), 2, workers=3))
    (tmp_path / "shard-1.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"^A shard cannot be read \(.*shard-1.tar.*\); replace or remove it.$"):
        list(read(open_data(shards, captions=True), 2, workers=1))


class Encoder(torch.nn.Module):
    """Stands for a tokenizer: a latent that is the picture's mean."""

    token_pixels = 28

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))
        self.encoded = 0

    def semantic_features(self, pixels):
        self.encoded += len(pixels)
        return pixels.mean((1, 2, 3))[:, None, None].expand(-1, 1, 32)

    def project(self, features):
        return features * self.weight + torch.arange(32.0)


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(latents, "BATCH", 2)
    monkeypatch.setattr(latents, "CHUNK", 3)


@pytest.fixture(params=["folder", "webdataset"])
def letters(request, tmp_path, small_files):
    """The [data] of ten pictures, a to j."""
    if request.param == "webdataset":
        return write_shards(tmp_path, LETTERS)
    for index, caption in enumerate(LETTERS):
        Image.new("RGB", (28, 28), (round(index * 25.5),) * 3).save(tmp_path / f"{caption}.png")
        (tmp_path / f"{caption}.txt").write_text(caption)
    return folder_data(tmp_path)


LETTERS = list("abcdefghij")


def encode(folder, encoder, data, count=10, workers=0):
    dataset = open_data(data, captions=True)
    return latents.cached_latents(folder, dataset, encoder, data, count, "cpu", features=True, workers=workers)


def encode_together(processes, monkeypatch, *arguments):
    """`encode` by several processes; they are threads here. Returns what the first returns."""
    own, barrier = threading.local(), threading.Barrier(processes, timeout=60)

    def work(rank):
        own.rank = rank
        return encode(*arguments)

    with monkeypatch.context() as patch, ThreadPoolExecutor(processes) as pool:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda group=None: own.rank)
        patch.setattr(torch.distributed, "get_world_size", lambda group=None: processes)
        patch.setattr(torch.distributed, "barrier", barrier.wait)
        return next(pool.map(work, range(processes)))


def check(found, captions=LETTERS):
    """Each latent has its own caption, and none is there twice."""
    assert sorted(found.captions) == sorted(captions)
    for index in range(len(captions)):
        latent, caption, features = found[index]
        assert features.mean() == pytest.approx(LETTERS.index(caption) * 0.1, abs=0.01)
        assert latent.shape == (32, 1, 1)


def test_encoding_goes_on_where_it_stopped(letters, tmp_path):
    whole = encode(tmp_path / "whole", Encoder(), letters)
    check(whole)
    encode(tmp_path / "parts", Encoder(), letters)
    for lost in (tmp_path / "parts" / f"{first:09}.safetensors" for first in (3, 6, 9)):
        lost.unlink()
    again = Encoder()
    parts = encode(tmp_path / "parts", again, letters)
    assert again.encoded == 7
    assert parts.captions == whole.captions
    assert all(torch.equal(parts[index][0], whole[index][0]) for index in range(10))
    assert encode(tmp_path / "parts", again, letters, count=4).captions == whole.captions[:4]
    assert again.encoded == 7


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_encoding(letters, tmp_path, monkeypatch, processes):
    # Of five shards, with two pictures each, one process has two or, of three, one.
    count = 10 if letters["kind"] == "folder" else {2: 8, 3: 6}[processes]
    found = encode_together(processes, monkeypatch, tmp_path / "shared", Encoder(), letters, count)
    check(found, found.captions)
    assert len(set(found.captions)) == count
    if letters["kind"] == "folder":
        (tmp_path / "shared" / "000000000.safetensors").unlink()
        check(encode(tmp_path / "shared", Encoder(), letters))  # by one that goes on alone


def test_latents_of_something_else_are_refused(letters, tmp_path):
    encode(tmp_path / "latents", Encoder(), letters)
    other = Encoder()
    other.weight.data[3] = 2
    with pytest.raises(TrainingError, match="holds latents of another tokenizer or other data"):
        encode(tmp_path / "latents", other, letters)
    with pytest.raises(TrainingError, match=r"data.count is 11, but (there are|the shards of process 1 of 1 hold) 10 "):
        encode(tmp_path / "eleven", Encoder(), letters, count=11)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"model.safetensors is no file of latents"):
        encode(tmp_path, Encoder(), letters)
    with pytest.raises(TrainingError, match=r"model.safetensors is a file; latents go into a folder"):
        encode(tmp_path / "model.safetensors", Encoder(), letters)
    (tmp_path / "latents" / "000000003.safetensors").unlink()
    if letters["kind"] == "webdataset":
        with pytest.raises(TrainingError, match=r"was begun with workers 0, not workers 2; go on as before"):
            encode(tmp_path / "latents", Encoder(), letters, workers=2)


def test_drawings_are_data(tmp_path):
    settings = {"kind": "drawings", "folder": str(drawn.folder(tmp_path)), "size": 56, "seed": 1, "length": 8}
    dataset = open_data({**settings, "free": True}, captions=True, token_pixels=28)
    pixels, caption = dataset[3]
    assert pixels.shape == (3, 56, 56) and caption == caption_of(dataset, 3)
    assert len(open_held_out({**settings, "split": "test"}, captions=True)) == 8
    with pytest.raises(DataError, match="drawings"):
        open_data({"kind": "drawings", "size": 56}, captions=True)
    with pytest.raises(ValueError, match="is no folder of drawings"):
        open_data({**settings, "folder": str(tmp_path / "elsewhere")}, captions=True)
