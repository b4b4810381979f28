"""Pictures with captions: folders, lists, the order of an epoch, and what is said of unusable ones."""

import pytest
from PIL import Image

from vgt.training.data import DataError, EndlessShuffle, open_data


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
    with pytest.raises(DataError, match=r"bare.png cannot be read as a picture"):
        open_data(folder_data(tmp_path), captions=False)[0]
    (tmp_path / "list.jsonl").write_text('{"image": "gone.png", "caption": "c"}\n')
    with pytest.raises(DataError, match=r"line 1, is a caption without its picture gone.png"):
        open_data(folder_data(tmp_path), captions=True)
    with pytest.raises(DataError, match="must be a multiple of 28"):
        open_data({"kind": "scenes", "size": 100}, captions=True)
