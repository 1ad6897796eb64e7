"""COVID-19-CT-Seg from archives in its layout that the tests write.

Tested are voxels by hand, damage, killed and simultaneous preparation, and a run.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from places import ROOT
from refusals import refused

from biedsnet_jax.data import splits
from biedsnet_jax.data.sources import covid19_ct_seg
from biedsnet_jax.data.sources.tfds import Tfds

CASES = ("coronacases_001", "coronacases_002", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3",
         "radiopaedia_7_85703_0")  # fmt: skip
IMAGES, INFECTION, LUNG, BOTH = covid19_ct_seg.FOLDERS.values()
FEATURES = {
    "image": "image",
    "mask": "infection",
    "case": "patient",
    "slice": "name",
    "spacing": "spacing",
}
# The axis i runs from left to right, j from back to front, k up.
RAS = np.diag([0.7, 0.8, 5.0, 1.0])


def volumes(case: str, *, plane=None, depth=2) -> dict[str, np.ndarray]:
    """Makes image and masks "i j k": a grey ramp, and infection in one corner."""
    corona = case.startswith("coronacases")
    sides = plane or ((512, 512) if corona else (630, 630))
    i, j, k = np.meshgrid(*map(np.arange, (*sides, depth)), indexing="ij")
    ramp = (i + 2 * j) / (sides[0] + 2 * sides[1]) + 0.01 * k
    hounsfield, windowed = (ramp * 2000 - 1100).astype(np.int16), ramp * 200
    image = hounsfield if corona else windowed.astype(np.uint8)
    infection = ((i < sides[0] // 2) & (j < sides[1] // 4)).astype(np.uint8)
    lung = np.where(i < sides[0] // 2, 1, 2) * (j < sides[1] // 2)
    lung = lung.astype(np.uint8)
    return {
        IMAGES: image,
        INFECTION: infection,
        LUNG: lung,
        BOTH: np.where(infection, 3, lung).astype(np.uint8),
    }


def packed(voxels, affine=RAS) -> bytes:
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), compresslevel=1)


def write(
    root: Path, cases=CASES, change=lambda folder, case, data: data, **kind
) -> Path:
    """Writes the four archives; `change` may replace a file's content, or drop it."""
    root.mkdir(parents=True, exist_ok=True)
    made = {case: volumes(case, **kind) for case in cases}
    for folder in covid19_ct_seg.FOLDERS.values():
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as file:
            for case in cases:
                data = change(folder, case, packed(made[case][folder]))
                if data is not None:
                    file.writestr(f"{case}.nii.gz", data)
    return root


def small(root: Path, change=lambda folder, case, data: data) -> Path:
    """Writes archives of three tiny volumes, for what does not depend on size."""
    return write(root, (CASES[0], CASES[1], CASES[4]), change, plane=(12, 10))


def source(root: Path, cache: Path, **how) -> Tfds:
    return Tfds(
        covid19_ct_seg.prepare(root, cache), cache, FEATURES, split="all", **how
    )


@pytest.fixture(scope="module")
def true_layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("covid")
    return write(folder / "archives"), folder / "cache"


# --- what comes out


def test_hounsfield_units_are_cut_to_the_window_and_grey_values_left_alone(true_layout):
    examples = source(*true_layout)
    names = [examples[n]["slice"] for n in range(len(examples))]
    assert names == [
        f"{case}/{z:03d}"
        for case in (*CASES[:2], CASES[4], *CASES[2:4])
        for z in range(2)
    ]
    # The last two volumes are of one patient.
    assert examples.cases[-4:] == ["radiopaedia_10_85902"] * 4
    first, windowed = examples[1], examples[names.index("radiopaedia_7_85703_0/001")]
    assert (first["image"].shape, windowed["image"].shape) == (
        (512, 512, 1),
        (630, 630, 1),
    )
    assert first["image"].dtype == np.uint8 and first["spacing"] == pytest.approx(
        (0.8, 0.7)
    )
    hu, stored = volumes(CASES[0])[IMAGES], volumes(CASES[4])[IMAGES]
    # Rows run from the front, columns from the right.
    for row, column in ((0, 0), (3, 500), (511, 511), (250, 100)):
        value = max(-1250, min(250, int(hu[511 - column, 511 - row, 1])))
        assert abs(first["image"][row, column, 0] - (value + 1250) * 255 / 1500) <= 0.5
    # The header of these has front and back the wrong way round.
    for row, column in ((0, 0), (3, 600), (629, 629)):
        assert windowed["image"][row, column, 0] == stored[629 - column, row, 1]


def test_every_label_map_lies_on_its_image(true_layout):
    folder = covid19_ct_seg.prepare(*true_layout)
    examples = Tfds(
        folder,
        true_layout[1],
        FEATURES | {"mask": "lung_and_infection"},
        classes=3,
        labels=((1, 3), (2,), (3,)),
        split=CASES[0],
    )
    example = examples[0]
    infection, lung = (
        volumes(CASES[0])[name][..., 0].T[::-1, ::-1] for name in (INFECTION, LUNG)
    )
    np.testing.assert_array_equal(
        example["mask"][..., 0], (lung == 1) | (infection == 1)
    )
    np.testing.assert_array_equal(
        example["mask"][..., 1], (lung == 2) & (infection == 0)
    )
    np.testing.assert_array_equal(example["mask"][..., 2], infection)


def test_units_give_back_hounsfield(true_layout):
    example = source(*true_layout, units=covid19_ct_seg.WINDOW)[0]
    expected = volumes(CASES[0])[IMAGES][..., 0].T[::-1, ::-1].clip(-1250, 250)
    np.testing.assert_allclose(
        example["image"][..., 0], expected, atol=0.5 * 1500 / 255 + 0.01
    )


def test_a_patient_is_never_on_two_sides(true_layout):
    examples = source(*true_layout)
    for seed in range(5):
        sides = splits.by_case(examples.cases, (0.5, 0.25, 0.25), seed=seed)
        owners = {
            side: {examples[i]["slice"][:20] for i in part}
            for side, part in sides.items()
        }
        assert sum("radiopaedia_10_85902" in owner for owner in owners.values()) == 1


@pytest.mark.parametrize("below", ["", "inner"])
def test_unpacked_archives_give_the_same(tmp_path, below):
    zipped = small(tmp_path / "zipped")
    for folder in covid19_ct_seg.FOLDERS.values():
        with zipfile.ZipFile(zipped / f"{folder}.zip") as file:
            file.extractall(tmp_path / "unpacked" / folder / below)
    one, other = (
        source(zipped, tmp_path / "cache"),
        source(tmp_path / "unpacked", tmp_path / "cache"),
    )
    assert one.cases == other.cases
    for n in range(len(one)):
        np.testing.assert_array_equal(one[n]["image"], other[n]["image"])
        np.testing.assert_array_equal(one[n]["mask"], other[n]["mask"])


def test_a_second_start_leaves_the_archives_alone_until_they_change(tmp_path):
    root, cache = small(tmp_path / "archives"), tmp_path / "cache"
    prepared = covid19_ct_seg.prepare(root, cache)
    path = root / f"{LUNG}.zip"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # Size and time are as before.
    assert covid19_ct_seg.prepare(root, cache) == prepared
    assert len(source(root, cache)) == 6
    os.utime(path)
    refused(
        lambda: covid19_ct_seg.prepare(root, cache),
        path,
        "Download Lung_Mask.zip again",
    )


def test_a_set_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync, replace = set(), os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda d: (synced.add(os.fstat(d).st_ino), fsync(d))
    )
    renamed = {}

    def look(path, target):
        renamed[target] = {
            one.name: one.stat().st_ino in synced
            for one in path.rglob("*")
            if one.is_file()
        }
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    prepared = covid19_ct_seg.prepare(small(tmp_path / "archives"), tmp_path / "cache")
    on_the_disk = renamed[prepared.parent]
    assert len(on_the_disk) >= 4 and all(on_the_disk.values()), on_the_disk
    assert [
        path.name for path in prepared.parents[1].iterdir() if path.name != ".lock"
    ] == [covid19_ct_seg.NAME]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    root = small(tmp_path / "archives")
    (root / f"{LUNG}.zip").unlink()
    os.mkfifo(root / f"{LUNG}.zip")
    refused(
        lambda: covid19_ct_seg.prepare(root, tmp_path / "cache"),
        root / f"{LUNG}.zip",
        "named pipe",
    )


# --- what is refused


def instead(folder, case, data):
    """Makes a `change` that replaces one file."""
    return lambda f, c, old: data if (f, c) == (folder, case) else old


def shifted():
    affine = RAS.copy()
    affine[0, 3] = 3
    return packed(np.zeros((12, 10, 2), np.uint8), affine)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_wrong_checksum(data: bytes) -> bytes:
    """Overwrites the last bytes of a gzip file, its checksum and length."""
    return data[:-8] + bytes(8)


ONE, OTHER = CASES[0], CASES[4]
TINY = volumes(ONE, plane=(12, 10))
NAMED = f"{LUNG}.zip"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (instead(LUNG, OTHER, None), [NAMED, OTHER, covid19_ct_seg.ORIGIN]),
        (instead(IMAGES, ONE, packed(TINY[IMAGES] + np.int16(1200))), [ONE, "Hounsfield"]),
        (instead(IMAGES, ONE, packed(TINY[INFECTION] * 200)), [ONE, "0 to 200", "Hounsfield"]),
        (instead(IMAGES, OTHER, packed(TINY[IMAGES])), [OTHER, "-1100 to ", "0 to 255"]),
        (instead(IMAGES, OTHER, packed(TINY[INFECTION] * np.int16(300))), [OTHER, "0 to 300"]),
        (instead(INFECTION, ONE, packed(TINY[LUNG])), [f"Infection_Mask.zip/{ONE}", " 2 "]),
        (instead(LUNG, ONE, packed(TINY[BOTH])), [f"{NAMED}/{ONE}", " 3 "]),
        (instead(BOTH, ONE, packed(TINY[BOTH] * np.uint8(2))), [f"{BOTH}.zip/{ONE}", " 6 "]),
        (instead(LUNG, ONE, packed(TINY[LUNG][:-1])), [NAMED, "12x10x2", "11x10x2"]),
        (instead(LUNG, ONE, shifted()), [NAMED, "3 mm"]),
        (instead(LUNG, ONE, b"no volume"), [f"{NAMED}/{ONE}", f"Download {NAMED} again"]),
        (instead(LUNG, ONE, cut(packed(TINY[LUNG]))), [ONE, f"Download {NAMED} again"]),
        (instead(BOTH, ONE, with_wrong_checksum(packed(TINY[BOTH]))), [f"{BOTH}.zip", "CRC"]),
    ],
)  # fmt: skip
def test_a_file_that_does_not_belong(tmp_path, change, says):
    root = small(tmp_path / "archives", change)
    refused(lambda: covid19_ct_seg.prepare(root, tmp_path / "cache"), *says)
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def missing(root):
    (root / f"{LUNG}.zip").unlink()
    (root / f"{BOTH}.zip").unlink()


def truncated(root):
    path = root / f"{INFECTION}.zip"
    path.write_bytes(path.read_bytes()[:-100])


def flipped_bit(root):
    """Flips a bit of a stored member, whose checksum is wrong then."""
    path = root / f"{INFECTION}.zip"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


def climbing(name):
    def add(root):
        with zipfile.ZipFile(root / f"{LUNG}.zip", "a") as file:
            file.writestr(name, packed(TINY[LUNG]))

    return add


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            missing,
            ["Lung_Mask.zip, Lung_and_Infection_Mask.zip", covid19_ct_seg.ORIGIN],
        ),
        (truncated, ["Infection_Mask.zip", "Download Infection_Mask.zip again"]),
        (flipped_bit, ["CRC-32", "Download Infection_Mask.zip again"]),
        (
            climbing("../coronacases_003.nii.gz"),
            ["Lung_Mask.zip", "'../coronacases_003"],
        ),
        (climbing("/coronacases_003.nii.gz"), ["Lung_Mask.zip", "'/coronacases_003"]),
        (climbing("a\\..\\..\\coronacases_003.nii.gz"), ["Lung_Mask.zip", "'a\\\\.."]),
        (
            climbing("inner/coronacases_001.nii.gz"),
            ["coronacases_001.nii.gz and inner/", "Keep one"],
        ),
        (climbing("patient_5.nii.gz"), ["Lung_Mask.zip", "patient_5.nii.gz"]),
    ],
)
def test_an_archive_that_is_not_whole(tmp_path, harm, says):
    root = small(tmp_path / "archives")
    harm(root)
    refused(lambda: covid19_ct_seg.prepare(root, tmp_path / "cache"), *says)
    assert not (tmp_path / "coronacases_003.nii.gz").exists()


def test_hidden_files_of_a_mac_are_passed_over(tmp_path):
    root = small(tmp_path / "archives")
    climbing("__MACOSX/._coronacases_001.nii.gz")(root)
    climbing("._coronacases_001.nii.gz")(root)
    assert len(source(root, tmp_path / "cache")) == 6


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file")
    root = small(tmp_path / "archives")
    refused(
        lambda: covid19_ct_seg.prepare(root, tmp_path / "cache"),
        tmp_path / "cache",
        "data.cache_dir",
    )


# --- processes

# Prepares with a pause before each case but the first, and prints their names.
SLOW = """
import sys, time
from pathlib import Path
from biedsnet_jax.data.sources import covid19_ct_seg as covid
read = covid.read_case
def slow(archives, case):
    print("reads", case, file=sys.stderr, flush=True)
    time.sleep(0 if case == "coronacases_001" else float(sys.argv[3]))
    return read(archives, case)
covid.read_case = slow
print(covid.prepare(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def start(root, cache, pause: float) -> subprocess.Popen:
    line = [sys.executable, "-c", SLOW, str(root), str(cache), str(pause)]
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_preparation_is_done_again_and_its_remains_are_cleared(tmp_path):
    root, cache = small(tmp_path / "archives"), tmp_path / "cache"
    process = start(root, cache, pause=120)
    written = []
    try:
        while not written and process.poll() is None:
            written = list(cache.rglob("incomplete*/*.array_record*"))
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert written, "it ended by itself"
    assert len(source(root, cache)) == 6
    assert not list(cache.rglob("incomplete*"))


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
    root, cache = small(tmp_path / "archives"), tmp_path / "cache"
    both = [start(root, cache, pause=0.5) for _ in range(2)]
    outputs = ["\n".join(process.communicate(timeout=120)) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    lines = "\n".join(outputs).splitlines()
    read = sorted(line for line in lines if line.startswith("reads"))
    assert read == [f"reads {case}" for case in (ONE, CASES[1], OTHER)]
    assert lines.count(str(covid19_ct_seg.prepare(root, cache))) == 2


RUN = """
import sys
from biedsnet_jax import main
code = main.run(["main", *sys.argv[1:]])
print("tensorflow" in sys.modules)
sys.exit(code)
"""


def run(*arguments: str) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_run_trains_on_the_archives_and_is_scored_again_without_tensorflow(
    true_layout, tmp_path
):
    root, cache = true_layout
    workdir = tmp_path / "run"
    imported = run(
        "--config=configs/covid.py:unet,toy,tfds",
        f"--workdir={workdir}",
        f"--config.data.root={root}",
        f"--config.data.cache_dir={cache}",
        "--config.train.steps=2",
        "--config.eval.every=2",
        f"--config.compile_cache={tmp_path / 'compiled'}",
    )
    assert imported == "False"
    results = json.loads((workdir / "results.json").read_text())
    assert results["n_images"] > 0
    assert set(results["cases"]) <= {*CASES, "radiopaedia_10_85902"}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        assert np.isfinite(json.loads(line).get("loss", 0))
    # The prepared set may be deleted at any time, and is made again.
    shutil.rmtree(cache)
    assert run("--mode=evaluate", f"--workdir={workdir}") == "False"
    again = json.loads((workdir / "results.json").read_text())
    assert again["standard"] == results["standard"]
