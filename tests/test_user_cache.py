"""The cache of the command line: where it is, what it keeps and removes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxsoftmax.app import user_cache
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.data import image_cache
from jaxsoftmax.app.data.image_cache import Images


def test_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(user_cache.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    expected = {"linux": "/somewhere/.cache", "darwin": "/somewhere/Library/Caches"}
    for platform, caches in expected.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert user_cache.folder() == Path(caches, "jaxsoftmax")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification ignores
    assert user_cache.folder() == Path("/somewhere/.cache/jaxsoftmax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert user_cache.folder() == Path("/var/x/jaxsoftmax")
    monkeypatch.setenv(user_cache.VARIABLE, "/mine")
    assert user_cache.folder() == Path("/mine")


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "mine.txt").write_text("kept, since the cache did not write it")
    for name, used in (("a", 300), ("b", 100), ("c", 200)):
        (images / name).write_bytes(bytes(10))
        os.utime(images / name, (used, 50))
    user_cache.trim(tmp_path, limit=20)
    assert sorted(path.name for path in images.iterdir()) == ["a", "c"]
    user_cache.trim(tmp_path, limit=0)
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "mine.txt"]


def test_what_cannot_be_written_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "file" / "cache"))
    assert user_cache.make_folder("images") is None


_COMPILE = """

from jaxsoftmax.app import user_cache
user_cache.keep_programs()
import jax
jax.jit(lambda x: 3 * x + 1)(2.0)
"""


def test_programs_are_kept_until_they_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    given = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    subprocess.run([sys.executable, "-c", _COMPILE], check=True, env=given)
    assert user_cache.size(tmp_path / "cache") > 0
    shown = CliRunner().invoke(app, ["cache"]).output
    assert shown.endswith(f"MB: {tmp_path}/cache\n")
    cleared = CliRunner().invoke(app, ["cache", "--clear"]).output
    assert cleared == f"cleared {shown}"
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setenv(user_cache.VARIABLE, "off")
    assert "JAXSOFTMAX_CACHE_DIR is off" in CliRunner().invoke(app, ["cache"]).output


def test_decoded_images_are_kept_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    source = tmp_path / "digits"
    source.mkdir()
    (source / "records").write_bytes(b"first")
    images = Images(np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([2, 0, 1]))
    decoded = []

    def read() -> Images:
        def decode() -> Images:
            decoded.append(1)
            return images

        return image_cache.load_or_decode(source, "train", decode)

    for expected in (1, 1):
        np.testing.assert_array_equal(read().pixels, images.pixels)
        assert len(decoded) == expected
    assert isinstance(read().pixels, np.memmap)
    (source / "records").write_bytes(b"other")  # of the same size
    np.testing.assert_array_equal(read().labels, images.labels)
    assert len(decoded) == 2
    for path in (tmp_path / "cache" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-3])  # damaged
    np.testing.assert_array_equal(read().pixels, images.pixels)
    assert len(decoded) == 3
    monkeypatch.setattr(user_cache, "LIMIT", 20)  # of which 12 bytes are more than half
    (source / "records").write_bytes(b"third")
    assert all(read().labels is images.labels for _ in range(2))
