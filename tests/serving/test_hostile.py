"""Tests that files made to take a server's memory, time or disk are refused quickly."""

import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="no pydicom: pip install pydicom")

import hostile_files as hostile
from places import ROOT
from refusals import refused

from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import scans
from biedsnet_jax.serving import check, child, handoff, upload
from biedsnet_jax.serving.limits import Limits
from biedsnet_jax.serving.reader import SMALL

MEBI = 2**20
HOSTILE = hostile.every()
# Bytes by which a copy may grow, whatever it is sent.
MOST = 64 * MEBI + SMALL


@pytest.fixture(scope="module")
def reader():
    """A process that reads."""
    reader = child.Reader()
    reader.start()
    yield reader
    reader.close()


@pytest.fixture
def read(reader, tmp_path):
    """`read(content)` -> the scan, by a process of its own."""

    def call(content, like="", limits=Limits(), look=lambda: None):  # noqa: B008
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / upload.UPLOAD).write_bytes(content)
        return reader.read(folder, like=like, channels=1, limits=limits, look=look)

    return call


@pytest.mark.parametrize("one", HOSTILE, ids=lambda one: one.name)
def test_a_hostile_file_is_refused(read, tmp_path, one):
    """A file is refused with its reason, within seconds.

    One whose reason is empty may also be read.
    """
    try:
        scan = read(one.content, one.like, Limits(read_seconds=20))
    except BadInput as error:
        said = upload.without_paths(str(error), tmp_path / "job")
        assert one.says in said
        assert "\n" not in said
        assert "more than 20 s" not in said
        left = {path.name for path in (tmp_path / "job").rglob("*") if path.is_file()}
        assert left <= {handoff.OUTCOME, "upload"}
    else:
        assert one.says == ""
        assert scan.slices.size == 64


def test_the_hostile_files_are_what_they_are_called():
    """They unpack to what they claim, without which their refusal proves nothing."""
    by_name = {one.name: one.content for one in HOSTILE}
    assert len(by_name) == len(HOSTILE)
    start = by_name["deflated"].index(b"1.2.840.10008.1.2.1.99") + 22
    assert len(zlib.decompress(by_name["deflated"][start:], -15)) == 512 * MEBI
    pages, place = 0, 8
    while place:
        pages += 1
        (place,) = struct.unpack_from("<I", by_name["40000 pages"], place + 98)
    assert pages == 40_000
    assert hostile.jpeg(passes=7).count(b"\xff\xda") == 7
    assert hostile.dicom() != hostile.dicom(hostile.element(2, 1, b"OB", b"ab"))


@pytest.mark.parametrize("content", [hostile.dicom(), hostile.nifti(), hostile.tiff()])
def test_what_the_hostile_files_are_made_of_is_read(read, content):
    assert read(content).slices.size in (64, 256)


@pytest.mark.parametrize("before", [0, 20, 900, 3000, 70_000])
@pytest.mark.parametrize("syntax", check.DEFLATED)
def test_the_transfer_syntax_is_found_wherever_it_stands(tmp_path, before, syntax):
    path = tmp_path / "scan.dcm"
    late = hostile.element(2, 1, b"OB", bytes(before))
    path.write_bytes(hostile.dicom(late, syntax=syntax))
    assert check.deflated_syntax(path) == syntax
    path.write_bytes(hostile.dicom(late))
    assert check.deflated_syntax(path) == ""


def test_a_file_that_only_mentions_the_deflated_syntax_is_read(read):
    mention = hostile.element(0x40, 0xA124, b"UI", check.DEFLATED[0].encode())
    assert read(hostile.dicom(rest=mention)).slices.size == 64


def made(folder, content, name="scan.nii.gz"):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder / name


# --- what comes through is what was read ---


def volume(kind=nib.Nifti1Image, order="<", slope=None):
    """Makes a NIfTI file in memory, with unusual codes and units."""
    affine = np.array(
        [[0, -0.7, 0, 3], [0.9, 0, 0.1, 4], [0, 0, -2.5, 5], [0, 0, 0, 1]]
    )
    voxels = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    image = kind(voxels, affine, kind.header_class(endianness=order))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, None if slope is None else 3)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    return image.to_bytes()


@pytest.mark.parametrize(
    ("content", "like"),
    [
        (volume(), ""),
        (volume(nib.Nifti2Image), ""),
        (volume(order=">"), ""),
        (volume(slope=0.5), ""),
        (hostile.dicom(), ""),
        (hostile.tiff(), ""),
    ],
    ids=["nifti", "nifti-2", "big-endian", "scaled", "dicom", "tiff"],
)
def test_a_scan_comes_through_as_it_is(read, tmp_path, content, like):
    suffix = upload.kind(content[:1024])
    path = made(tmp_path / "alone", content, f"scan{suffix}")
    expected = scans.read(*scans.search(path, channels=1).items, channels=1)
    scan = read(content, like)
    assert isinstance(scan.slices, np.memmap)
    assert scan.slices.dtype == expected.slices.dtype
    np.testing.assert_array_equal(scan.slices, expected.slices)
    assert (scan.item.name, scan.item.kind) == (expected.item.name, expected.item.kind)
    if expected.volume is None:
        assert scan.volume is None
        return
    np.testing.assert_array_equal(scan.volume.voxels, expected.volume.voxels)
    np.testing.assert_array_equal(scan.volume.affine, expected.volume.affine)
    assert scan.volume.spacing == expected.volume.spacing
    if expected.volume.header is not None:
        assert scan.volume.header.binaryblock == expected.volume.header.binaryblock
        assert scan.volume.header.endianness == expected.volume.header.endianness


def test_every_field_of_a_scan_is_handed_over():
    """A field that is added to one of these must be added to handoff too."""
    fields = {
        kind.__name__: set(kind.__dataclass_fields__)
        for kind in (scans.Scan, scans.Item)
    }
    assert fields == {
        "Scan": {"item", "slices", "volume", "notes", "scanned", "turn"},
        "Item": {"name", "kind", "files", "depth", "notes"},
    }
    volume = {"voxels", "affine", "path", "header", "plane"}
    assert set(handoff.Volume.__dataclass_fields__) == volume


def test_missing_slices_and_warnings_come_through(tmp_path):
    scan = scans.Scan(
        scans.Item("a", "picture", (tmp_path / "a",), 2, ("known before",)),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1),
        notes=["one"],
        scanned=np.broadcast_to(np.array([True, False])[:, None, None], (2, 3, 4)),
        turn=6,
    )
    (tmp_path / handoff.FOLDER).mkdir()
    handoff.write(tmp_path, scan)
    found = handoff.load(tmp_path)
    assert found.notes == ["one"]
    assert found.item == scan.item
    assert found.volume is None
    assert found.turn == 6
    np.testing.assert_array_equal(found.scanned, scan.scanned)


# --- the limits of a process ---


def zeros(mebibytes):
    """Makes a .nii.gz of so many mebibytes of zeros, which its header declares."""
    head = hostile.nifti(shape=(1024, 1024, mebibytes))[:352]
    packed = zlib.compressobj(1, wbits=31)
    return (
        packed.compress(head)
        + packed.compress(bytes(mebibytes * MEBI))
        + packed.flush()
    )


def test_memory_ends_at_its_limit(read):
    """250 MiB are refused here and read in the next test."""
    limits = Limits(memory=150 * MEBI)
    refused(lambda: read(zeros(250), limits=limits), "memory")


def test_memory_that_is_declared_may_be_used(read):
    # It is read whole and refused by its name, since it has one value.
    refused(lambda: read(zeros(250)), "scan.nii.gz")


def test_few_declared_values_get_little_memory(reader, tmp_path):
    """A slice of 8 x 8 pixels may not unpack to 0.5 GB, though 3 GiB are allowed."""
    (one,) = [one for one in HOSTILE if one.name == "run lengths"]
    peak, ended = [0], threading.Event()
    watch = threading.Thread(target=peaks, args=(os.getpid(), peak, ended))
    watch.start()
    (tmp_path / upload.UPLOAD).write_bytes(one.content)
    with pytest.raises(BadInput):
        reader.read(tmp_path, like="", channels=1, limits=Limits(memory=3 * 2**30))
    ended.set()
    watch.join()
    assert 0 < peak[0] < MOST + len(one.content)


def peaks(parent, peak, ended):
    """Records the most memory, not shared, of a reader below `parent`."""
    while not ended.wait(0.005):
        for pid in below(parent):
            peak[0] = max(peak[0], resident(pid))


def below(parent):
    """Lists the readers that `parent` started, and their copies."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"biedsnet_jax.serving.reader" in line and str(parent).encode() in line:
            found.append(int(path.name))
    return found


def resident(pid):
    """Returns the bytes of a process that are not of a file; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) * 1024
    except (OSError, AttributeError):
        return 0


def slow():
    """Makes a series of 4000 files of the same place: headers alone take seconds."""
    files = {f"{n}.dcm": hostile.dicom() for n in range(4000)}
    return hostile.archive(files)


def test_time_ends_at_its_limit(read, tmp_path):
    began = time.monotonic()
    refused(lambda: read(slow(), limits=Limits(read_seconds=1)), "more than 1 s")
    assert time.monotonic() - began < 30
    assert not (tmp_path / "job" / handoff.FOLDER / handoff.OUTCOME).exists()


def test_what_nobody_wants_any_more_ends(read, reader, tmp_path):
    class Unwanted(Exception):
        pass

    def look():
        raise Unwanted

    with pytest.raises(Unwanted):
        read(slow(), look=look)
    # The reader itself is left, and reads the next upload.
    assert len(below(os.getpid())) == 1
    again = tmp_path / "again"
    made(again, hostile.dicom(), upload.UPLOAD)
    assert reader.read(again, like="", channels=1, limits=Limits()).slices.size == 64


def test_a_reader_that_was_killed_starts_again(tmp_path):
    others, reader = below(os.getpid()), child.Reader()
    reader.start()
    for number in range(3):
        for pid in {*below(os.getpid())} - {*others}:
            os.kill(pid, signal.SIGKILL)
        folder = tmp_path / str(number)
        made(folder, hostile.dicom(), upload.UPLOAD)
        try:
            scan = reader.read(folder, like="", channels=1, limits=Limits())
            assert scan.slices.size == 64
        # Where the kill was not noticed yet, this upload, and no other, is lost.
        except BadInput as error:
            assert "signal 9" in str(error)
    reader.close()


_HOLD = """
import sys, pathlib
from biedsnet_jax.serving import child
from biedsnet_jax.serving.limits import Limits
reader = child.Reader()
reader.start()
print("up", flush=True)
reader.read(pathlib.Path(sys.argv[1]), like="", channels=1, limits=Limits())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_reading_ends_with_the_server_however_that_ends(tmp_path, number):
    made(tmp_path / "job", slow(), upload.UPLOAD)
    line = [sys.executable, "-c", _HOLD, str(tmp_path / "job")]
    server = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE)
    server.stdout.readline()
    deadline = time.monotonic() + 60
    # The reader and its copy.
    while len(below(server.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.send_signal(number)
    server.communicate()
    while below(server.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert below(server.pid) == []


def test_no_jax_is_loaded_where_uploads_are_read():
    code = (
        "import sys, biedsnet_jax.serving.reader, biedsnet_jax.serving.child; "
        "print({'jax', 'flax'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
