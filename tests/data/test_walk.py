"""Files below a folder: links, loops, hidden and other files, what is passed over."""

import os
from pathlib import Path

import pytest
from csv_files import read
from refusals import refused

from biedsnet_jax.data import walk


def is_png(path: Path) -> bool:
    return path.suffix == ".png"


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def below(root, **options):
    found, passed = walk.below(root, is_png, **options)
    return [path.relative_to(root).as_posix() for path in found], {
        one.path.relative_to(root).as_posix(): one.why for one in passed
    }


def test_everything_is_found_or_passed_over(tmp_path):
    make(
        tmp_path,
        "a/1.png",
        "a/b/2.png",
        "3.png",
        "a/4.nrrd",
        "5",
        ".hidden.png",
        ".git/6.png",
    )
    found, passed = below(tmp_path)
    assert found == ["3.png", "a/1.png", "a/b/2.png"]
    assert passed == {
        ".git": "hidden",
        ".hidden.png": "hidden",
        "5": "not a format that is read (a name without extension)",
        "a/4.nrrd": "not a format that is read (.nrrd)",
    }


def test_linked_folders_and_files_are_followed(tmp_path):
    make(tmp_path, "elsewhere/1.png", "other/2.png", "root/0.png")
    (tmp_path / "root/case").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/file.png").symlink_to(tmp_path / "other/2.png")
    assert below(tmp_path / "root") == (["0.png", "case/1.png", "file.png"], {})


@pytest.mark.parametrize("target", ["b", ".", "a"])
def test_a_loop_ends_and_is_reported(tmp_path, target):
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b/loop").symlink_to((tmp_path / target).resolve())
    found, passed = below(tmp_path)
    assert found == ["a/1.png", "b/2.png"]
    assert passed == {"b/loop": "a folder that is read under another name"}


def test_two_folders_that_link_to_each_other(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    (tmp_path / "b/a").symlink_to(tmp_path / "a")
    found, passed = below(tmp_path)
    assert found == ["a/1.png", "b/2.png"] and set(passed) == {"a/b", "b/a"}


def test_a_folder_comes_before_links_to_it(tmp_path):
    make(tmp_path, "z/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    found, passed = below(tmp_path)
    assert found == ["z/1.png"] and set(passed) == {"a"}


def test_a_link_to_nothing_is_left_to_whoever_reads_it(tmp_path):
    (tmp_path / "1.png").symlink_to(tmp_path / "gone")
    assert below(tmp_path) == (["1.png"], {})


def test_folders_left_out_are_not_reported(tmp_path):
    make(tmp_path, "a/1.png", "out/2.png")
    found, passed = below(tmp_path, leave_out=lambda path: path.name == "out")
    assert found == ["a/1.png"] and not passed


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/2.png")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert below(tmp_path) == (
        ["b/2.png"],
        {"a": "a folder that cannot be listed (Permission denied)"},
    )


def test_what_is_no_file_is_refused(tmp_path):
    make(tmp_path, "1.png")
    walk.check_regular(tmp_path / "1.png")
    walk.check_regular(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("/dev/zero")
    (tmp_path / "4.png").mkdir()
    kinds = {"2.png": "named pipe", "3.png": "device", "4.png": "folder"}
    for name, kind in kinds.items():
        path = tmp_path / name
        refused(lambda path=path: walk.check_regular(path), path, kind)


def test_what_is_not_read_has_a_reason(tmp_path):
    make(tmp_path, "1.NRRD", "2", "3.tar.gz")
    os.mkfifo(tmp_path / "4.png")
    kinds = [
        walk.unread(tmp_path / name).why
        for name in ("1.NRRD", "2", "3.tar.gz", "4.png")
    ]
    assert kinds == [
        "not a format that is read (.nrrd)",
        "not a format that is read (a name without extension)",
        "not a format that is read (.gz)",
        "not a file (a named pipe)",
    ]
    regular = [walk.is_regular(tmp_path / name) for name in ("2", "4.png", "gone")]
    assert regular == [True, False, True]


def test_the_summary_counts_reasons(tmp_path):
    passed = [
        walk.PassedOver(tmp_path / name, why)
        for name, why in (("a", "x"), ("b", "y"), ("c", "y"))
    ]
    assert walk.summary(passed) == "3 files passed over: 2 y, 1 x"
    assert walk.summary(passed[:1]) == "1 file passed over: 1 x"
    assert walk.summary([]) == ""


def test_the_record_goes_with_its_reason(tmp_path):
    walk.write_record(tmp_path, [walk.PassedOver(Path("=a.nrrd"), "x")])
    assert read(tmp_path / walk.RECORD) == [{"file": "'=a.nrrd", "why": "x"}]
    walk.write_record(tmp_path, [])
    assert not (tmp_path / walk.RECORD).exists()
