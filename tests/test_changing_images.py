"""Images that are damaged or replaced in the middle of a run: one line names them, and nothing of them is used or kept."""

import os
import re
import tarfile
import threading

import pytest
import tiny
from image_helpers import message

import psi_fast
from psi_fast import image_bank, image_stream, mining
from psi_fast.errors import InputError

PLACE = 20
"""Of the image that changes, among 24 in order."""


@pytest.fixture
def folder(tmp_path):
    return tiny.write_pictures(tmp_path / "pictures")


@pytest.fixture
def shard(tmp_path, folder):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number, own in enumerate(sorted(folder.rglob("*.png"))):
            tar.add(own, f"{number:03}.png")
    return path


def cut(path):
    """Half of it is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path):
    """Another image, as whole and as large."""
    held = path.read_bytes()
    tiny.picture(77, tiny.sizes(0)).save(path, "PNG")
    path.write_bytes(path.read_bytes().ljust(len(held), b"\0"))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def removed(path):
    path.unlink()


@pytest.fixture
def during(monkeypatch):
    """Has something done once while images are decoded, or once they have been mined."""

    def have(stage, do):
        done, alone = [], threading.Lock()

        def once():  # images are decoded in several threads
            with alone:
                if not done:
                    done.append(do())

        if stage == "decoding":
            for module in (image_bank, image_stream):
                real = module.squared
                monkeypatch.setattr(module, "squared", lambda *given, real=real: (once(), real(*given))[1])
        else:
            whole = mining.Miner.whole
            monkeypatch.setattr(mining.Miner, "whole", lambda *given: (whole(*given), once())[0])
        return done

    return have


def run(source, root, **changes):
    return tiny.score(images=str(source), **{"bank": root / "banks", "out": root / "run"} | changes)


@pytest.mark.parametrize("change", [cut, replaced, removed])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_changes_while_images_are_decoded(tmp_path, folder, during, change, skip, stream):
    path = sorted(folder.rglob("*.png"))[PLACE]
    name = path.relative_to(folder).as_posix()
    done = during("decoding", lambda: change(path))
    more = {"skip_unreadable": skip} | ({"bank": "stream"} if stream else {})
    text = message(run, folder, tmp_path, **more, error=InputError)
    assert name in text
    assert ("has changed since it was listed; start again" in text) == (change is not removed)
    assert len(done) == 1
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert stream or list((tmp_path / "banks").iterdir()) == []
    if change is cut and not skip:
        assert "cannot decode image" in message(run, folder, tmp_path, **more, error=InputError)
    else:
        found = run(folder, tmp_path, **more)
        assert found.manifest["images"] == (24 if change is replaced else 23)
        assert (change is cut) == any("skipped 1 unreadable image" in line for line in found.manifest["warnings"])


def test_a_file_that_changes_between_two_passes_over_a_stream(tmp_path, folder, during):
    """Mined as one image, it would be cut from another."""
    found = run(folder, tmp_path, bank="stream", out=None)
    name = found.patches["image"].iloc[0]
    during("mined", lambda: replaced(folder / name))
    text = message(run, folder, tmp_path, bank="stream", error=InputError)
    assert text == f"image {name!r} has changed since it was listed; start again"
    assert not (tmp_path / "run" / "manifest.json").exists()
    again = run(folder, tmp_path, bank="stream")  # takes nothing of what was mined before
    assert again.table.equals(run(folder, tmp_path / "other").table)


def test_a_file_that_changes_behind_its_bank_is_no_matter(tmp_path, folder, during):
    """All that a run needs of it is in the bank; the next run sees another image."""
    expected = run(folder, tmp_path, out=None)
    during("mined", lambda: replaced(sorted(folder.rglob("*.png"))[PLACE]))
    assert run(folder, tmp_path).table.equals(expected.table)
    with pytest.raises(psi_fast.PsiFastError, match=r"another run \(with other images\)"):
        run(folder, tmp_path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("change", [cut, replaced])
def test_a_shard_that_changes_while_it_is_read(tmp_path, shard, during, change, stream):
    during("decoding", lambda: change(shard))
    text = message(run, shard, tmp_path, **({"bank": "stream"} if stream else {}), error=InputError)
    assert re.fullmatch(r"shard '.*shard\.tar' has changed since it was indexed; start again", text)
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert stream or list((tmp_path / "banks").iterdir()) == []
