"""A file has its name only once its contents are on the disk."""

import os

from vgt.files import durable


def test_contents_come_before_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(durable.os, name, lambda *a, name=name, real=real: (done.append(name), real(*a))[1])
    (tmp_path / "a.part").write_text("whole")
    durable.put_in_place(tmp_path / "a.part", tmp_path / "a")
    assert done == ["fsync", "replace"]
    assert (tmp_path / "a").read_text() == "whole"
