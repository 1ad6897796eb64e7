"""Does the input keep up with training, and does a large volume fit in memory?

    python benchmarks/input_pipeline.py [--volumes=3] [--shape=512,512,300] [--folder=DIR]

Writes float32 volumes (.nii.gz) with label maps, and measures on them, each in a
process of its own:

- the first reading of all volumes into the slice cache: seconds and peak resident memory;
- the second start, which reads only the cache: seconds;
- training batches after that (window, resize, normalise, augment): batches a second, and gzip files opened;
- the training step of configs/nifti.py:cpu on this machine: steps a second.

Exit code 1 if the peak is 1.5 GiB or more, the pipeline is under 5 times the step, or
an epoch opens a gzip file.
"""

import contextlib
import json
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

MOST_GIB, LEAST_RATIO = 1.5, 5.0


def main() -> int:
    arguments = _arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(
            arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        )
        shape = tuple(map(int, arguments.shape.split(",")))
        write_volumes(folder / "data", arguments.volumes, shape)
        report = {"volumes": arguments.volumes, "shape": shape}
        for name, measure in (
            ("first", read),
            ("second", read),
            ("pipeline", feed),
            ("step", train),
        ):
            report[name] = _in_a_process(measure, folder)
            print(f"{name:9s}", json.dumps(report[name]), flush=True)
    peak = report["first"]["peak_gib"]
    ratio = (
        report["pipeline"]["batches_per_second"] / report["step"]["steps_per_second"]
    )
    opened = report["pipeline"]["gzip_files_opened"]
    print(
        f"peak {peak:.2f} GiB, to be under {MOST_GIB}; {ratio:.1f} times the step, to be {LEAST_RATIO} or more"
    )
    return 0 if peak < MOST_GIB and ratio >= LEAST_RATIO and opened == 0 else 1


def write_volumes(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Smooth noise with a bright box that the label map marks, as float32."""
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


def read(folder: Path) -> dict:
    """Open the source as training does, every volume verified."""
    cfg, start = _config(folder), time.perf_counter()
    _open(cfg)
    return {"seconds": time.perf_counter() - start, "peak_gib": _peak()}


def feed(folder: Path) -> dict:
    """Training batches from the cache, an epoch of them and then a timed stretch."""
    from biedsnet_jax.config import build_data
    from biedsnet_jax.data import pipeline
    from biedsnet_jax.data.formats import nifti

    cfg, opened = _config(folder), []
    original = nifti.read
    nifti.read = lambda path: opened.append(path) or original(path)
    data = _open(cfg)
    batches = pipeline.train_batches(
        data.source,
        data.train,
        prepare=build_data.make_prepare(cfg),
        augment=cfg.augment.to_dict(),
        batch_size=cfg.train.batch_size,
        seed=0,
    )
    epoch = -(-len(data.train) // cfg.train.batch_size)
    with contextlib.closing(batches):
        for _ in range(epoch):
            next(batches)
        start, timed = time.perf_counter(), max(epoch, 100)
        for _ in range(timed):
            next(batches)
        seconds = time.perf_counter() - start
    return {
        "batches_per_second": timed / seconds,
        "gzip_files_opened": len(opened),
        "peak_gib": _peak(),
    }


def train(folder: Path) -> dict:
    """The update of the same config, as mode benchmark times it."""
    from biedsnet_jax.benchmarking import benchmark
    from biedsnet_jax.runtime import devices

    devices.enable_compile_cache("auto")
    _, update = benchmark.programs(_config(folder), devices.make_mesh())
    _, fields, _ = benchmark.measure(update, repeats=10)
    return {"steps_per_second": 1e3 / fields["milliseconds"]["median"]}


def _open(cfg):
    from biedsnet_jax.config import build_data

    return build_data.open_data(cfg)


def _config(folder):
    from biedsnet_jax.config.check import check_config
    from configs import nifti

    cfg = nifti.get_config("cpu")
    cfg.data.root, cfg.data.cache_dir = str(folder / "data"), str(folder / "cache")
    cfg.data.window, cfg.data.normalise = (-1250.0, 250.0), "none"
    cfg.split.train, cfg.split.val, cfg.split.test = (
        ("case_0",),
        ("case_1",),
        ("case_2",),
    )
    check_config(cfg)
    return cfg


def _in_a_process(measure, folder):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (folder,))


def _peak() -> float:
    """Largest resident memory of this process so far, GiB."""
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
