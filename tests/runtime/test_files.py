"""Whole files: after a kill, on a full disk, with long names, without a home."""

import errno
import functools
import os
from pathlib import Path

import pytest
from no_home import leave_homeless
from refusals import refused

from biedsnet_jax.runtime import files


@pytest.fixture
def synced(monkeypatch):
    """Names of the files and folders that are brought to the disk, in order."""
    names, real = [], os.fsync

    def fsync(descriptor):
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    files.write_text(tmp_path / "a.json", "{}")
    assert synced == [".partial_a.json", tmp_path.name]
    assert (tmp_path / "a.json").read_text() == "{}"


def test_an_appended_line_is_on_the_disk(tmp_path, synced):
    files.append_text(tmp_path / "log", "one\n")
    # A new file has a new name, which its folder must keep.
    assert synced == ["log", tmp_path.name]
    files.append_text(tmp_path / "log", "two\n")
    assert synced[2:] == ["log"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_for_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "a", "x")
        files.append_text(tmp_path / "b", "x")
    finally:
        os.umask(before)
    for name in "ab":
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    files.write_text(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), files.whole_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    (path,) = tmp_path.iterdir()
    assert (path.name, path.read_text()) == ("a", "before")


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "é" * 124 + ".nii.gz", "x" * 255])
def test_the_longest_names_can_be_written(tmp_path, name):
    with files.whole_file(tmp_path / name) as partial:
        # The end of the name chooses the format of a picture or volume.
        assert partial.name[-4:] == name[-4:]
        partial.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_shared_files_are_written_under_names_of_their_own(tmp_path):
    with files.whole_file(tmp_path / "a", shared=True) as one:
        assert str(os.getpid()) in one.name
        one.write_text("x")
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("size", [0, 10, 2**20, 2**20 + 7, 2**22])
def test_a_fingerprint_tells_a_change_at_either_end_and_of_size(tmp_path, size):
    path, content = tmp_path / "a", bytearray(os.urandom(size))
    path.write_bytes(content)
    known = {files.fingerprint(path)}
    for index in {0, size - 1} if size else ():
        changed = content.copy()
        changed[index] ^= 1
        path.write_bytes(changed)
        known.add(files.fingerprint(path))
    path.write_bytes(content + b"x")
    known.add(files.fingerprint(path))
    assert len(known) == (2 if size == 0 else 4)
    path.write_bytes(content)
    assert files.fingerprint(path) in known


class TestCacheFolder:
    def test_the_variable_comes_first(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
        assert files.user_cache() == Path("/x/cache/biedsnet_jax")

    def test_a_relative_one_is_ignored(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        monkeypatch.setenv("HOME", "/x/home")
        assert files.user_cache() == Path("/x/home/.cache/biedsnet_jax")

    def test_then_the_home(self, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "/x/home")
        assert files.user_cache() == Path("/x/home/.cache/biedsnet_jax")

    @pytest.fixture
    def homeless(self, monkeypatch, tmp_path):
        leave_homeless(monkeypatch, tmp_path)
        return tmp_path

    def test_without_a_home_it_is_the_users_own_temporary_folder(self, homeless):
        folder = files.user_cache()
        assert folder == homeless / f"biedsnet_jax_{os.getuid()}" == files.user_cache()
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_a_folder_that_others_may_write_is_not_used(self, homeless):
        planted = homeless / f"biedsnet_jax_{os.getuid()}"
        planted.mkdir()
        planted.chmod(0o777)
        assert files.user_cache() != planted

    def test_nor_one_behind_a_link(self, homeless):
        (homeless / "elsewhere").mkdir(mode=0o700)
        planted = homeless / f"biedsnet_jax_{os.getuid()}"
        planted.symlink_to(homeless / "elsewhere")
        assert files.user_cache() != planted


@pytest.mark.parametrize("name", [b"p\xff", b"\xe9t\xe9", "肺 ü".encode(), b"\x80\x81"])
def test_names_of_no_encoding_keep_their_bytes(tmp_path, name):
    """A folder of scans may have been named under another encoding."""
    (tmp_path / "a").mkdir()
    (Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/" + name))).touch()
    (found,) = os.listdir(tmp_path / "a")
    files.write_text(tmp_path / "written", found)
    files.append_text(tmp_path / "appended", found)
    assert (tmp_path / "written").read_bytes() == name
    assert (tmp_path / "appended").read_bytes() == name


class TestHomeInPaths:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("~", "/h"),
            ("~/a/b", "/h/a/b"),
            ("a/~", "a/~"),
            ("./~", "./~"),
            ("", ""),
            ("a~", "a~"),
            ("/~/a", "/~/a"),
        ],
    )
    def test_a_leading_tilde_is_the_home(self, monkeypatch, path, expected):
        monkeypatch.setenv("HOME", "/h")
        assert files.expanded(path) == expected

    def test_without_a_home_nothing_called_tilde_is_made(self, monkeypatch, tmp_path):
        leave_homeless(monkeypatch, tmp_path)
        monkeypatch.chdir(tmp_path)
        for path in ("~", "~/a", "~nobody_at_all/a"):
            home = path.partition("/")[0]
            refused(functools.partial(files.expanded, path), home, f"./{home}")
        # A folder of that name is meant where there is one.
        (tmp_path / "~" / "a").mkdir(parents=True)
        assert files.expanded("~/a") == "~/a"


class TestWhatCannotBeWritten:
    @pytest.mark.parametrize(
        ("folder", "what"),
        [
            ("file", "is no folder"),
            ("file/deeper", "is no folder"),
            ("file/deeper/still", "is no folder"),
            ("gone_link/deeper", "is no folder"),
        ],
    )
    def test_a_folder_that_cannot_be(self, tmp_path, folder, what):
        (tmp_path / "file").touch()
        (tmp_path / "gone_link").symlink_to(tmp_path / "gone")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(OSError, match=what):
            files.check_writable(tmp_path / folder)
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("folder", ["", "a", "a/b/c"])
    def test_one_that_can_is_left_as_it_was(self, tmp_path, folder):
        files.check_writable(tmp_path / folder)
        assert list(tmp_path.iterdir()) == []

    def test_a_system_that_refuses(self):
        with pytest.raises(OSError, match=r"."):
            files.check_writable(Path("/sys/kernel/x"))

    def test_a_full_disk(self, tmp_path, monkeypatch):
        """A disk without room for 64 KiB counts as full."""

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *exception):
                pass

            def write(self, content):
                assert len(content) == 65536
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
        with pytest.raises(OSError, match="No space left"):
            files.check_writable(tmp_path)

    def test_a_pipe_a_device_and_a_folder_keep_their_names(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "null").symlink_to("/dev/null")
        for name in ("pipe", "folder", "null"):
            with pytest.raises(OSError, match="not a file"):
                files.write_text(tmp_path / name, "text")
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"folder", "null", "pipe"}
        assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()
