"""Measures whether the input keeps up with training, and large volumes fit in memory.

    python benchmarks/input_pipeline.py [--volumes=3] [--shape=512,512,300] [--folder=DIR] \
        [--config=configs/nifti.py:cpu]

Writes float32 volumes (.nii.gz) with label maps, and measures on them, each in a
process of its own:

- the first reading of all volumes into the slice cache: seconds, peak resident memory;
- the second start, which reads only the cache: seconds;
- training batches after that (window, resize, normalise, augment): batches a second,
  and gzip files opened;
- the training step of the config on this machine: steps a second.

Exit code 1 if the peak is 1.5 GiB or more, the pipeline is under 5 times the step, or
an epoch opens a gzip file.
"""

import contextlib
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts

# Memory that reading may take, and steps that the pipeline must be ahead of training.
MOST_GIB, LEAST_RATIO = 1.5, 5.0


def main() -> int:
    arguments, words = _arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(
            arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        )
        shape = tuple(map(int, arguments.shape.split(",")))
        write_volumes(folder / "data", arguments.volumes, shape)
        report = {"volumes": arguments.volumes, "shape": shape}
        measures = {"first": read, "second": read, "pipeline": feed, "step": train}
        for name, measure in measures.items():
            report[name] = _in_a_process(measure, folder, words)
            print(f"{name:9s}", json.dumps(report[name]), flush=True)
    peak = report["first"]["peak_gib"]
    pipeline = report["pipeline"]
    step = report["step"]
    ratio = pipeline["batches_per_second"] / step["steps_per_second"]
    print(
        f"peak {peak:.2f} GiB, must be under {MOST_GIB}; "
        f"{ratio:.1f} times the step, must be {LEAST_RATIO} or more"
    )
    fast = ratio >= LEAST_RATIO and pipeline["gzip_files_opened"] == 0
    return 0 if fast and peak < MOST_GIB else 1


def write_volumes(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Writes float32 noise with a bright box, and label maps that mark the box."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        affine = np.diag([-0.8, -0.8, 2.5, 1.0])
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(side // 3, side // 2) for side in shape)] = 1
        plane = rng.normal(size=shape[:2]).astype(np.float32)
        image = np.empty(shape, np.float32)
        for k in range(shape[2]):
            image[..., k] = np.roll(plane, k, axis=0) * 50 + 300.0 * label[..., k] - 700
        for kind, voxels in (("images", image), ("labels", label)):
            path = folder / kind / f"case_{n}.nii.gz"
            if not path.exists():
                nib.Nifti1Image(voxels, affine).to_filename(path)


def read(folder: Path, words: list[str]) -> dict:
    """Opens the source as training does, and verifies every volume."""
    from biedsnet_jax.config import build_data

    cfg = _config(folder, words)
    start = time.perf_counter()
    build_data.open_data(cfg)
    return {"seconds": time.perf_counter() - start, "peak_gib": _peak()}


def feed(folder: Path, words: list[str]) -> dict:
    """Times training batches from the cache, after an epoch of them."""
    from biedsnet_jax.config import build_data
    from biedsnet_jax.data import pipeline
    from biedsnet_jax.data.formats import nifti

    cfg = _config(folder, words)
    opened = []
    original = nifti.read
    # Counts the volumes that are opened: with a full cache there are none.
    nifti.read = lambda path: opened.append(path) or original(path)
    data = build_data.open_data(cfg)
    batches = pipeline.train_batches(
        data.source,
        data.train,
        prepare=build_data.make_prepare(cfg),
        augment=cfg.augment.to_dict(),
        batch_size=cfg.train.batch_size,
        seed=0,
    )
    epoch = math.ceil(len(data.train) / cfg.train.batch_size)
    with contextlib.closing(batches):
        # The first epoch starts the workers and reads the cache into memory.
        for _ in range(epoch):
            next(batches)
        start = time.perf_counter()
        timed = max(epoch, 100)
        for _ in range(timed):
            next(batches)
        seconds = time.perf_counter() - start
    return {
        "batches_per_second": timed / seconds,
        "gzip_files_opened": len(opened),
        "peak_gib": _peak(),
    }


def train(folder: Path, words: list[str]) -> dict:
    """Times the training step of the same config, as mode benchmark does."""
    return {"steps_per_second": scripts.steps_a_second(_config(folder, words))}


def _config(folder, words):
    fields = {
        "data.root": folder / "data",
        "data.cache_dir": folder / "cache",
        "data.window": (-1250.0, 250.0),
        "data.normalise": "none",
        "split.train": ("case_0",),
        "split.val": ("case_1",),
        "split.test": ("case_2",),
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return scripts.read_config([*words, *flags])


def _in_a_process(measure, folder, words):
    # A process of its own, since the peak of one lasts to its end.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (folder, words))


def _peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--volumes",
        type=int,
        default=3,
        help="three or more: one each to train, validate and test",
    )
    parser.add_argument("--shape", default="512,512,300", help="voxels along each axis")
    parser.add_argument(
        "--folder", help="keep volumes and cache here; a temporary folder by default"
    )
    arguments, words = parser.parse_known_args()
    return arguments, words or ["--config=configs/nifti.py:cpu"]


if __name__ == "__main__":
    sys.exit(main())
