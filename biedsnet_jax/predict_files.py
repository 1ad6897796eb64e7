"""Mode predict: masks, maps and a summary for every image, volume and DICOM series of a folder.

The next scan is read while one is segmented. What is finished is skipped when the command is given again; a scan that
cannot be read does not stop the others. Of several processes each takes a share of the scans, on its own devices; they
wait for each other at the start and at the end alone.
"""

import contextlib
import hashlib
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from biedsnet_jax import closing, config, console, models, outputs, predict, processes, progress
from biedsnet_jax.data import scans
from biedsnet_jax.types import BadInput

FAILED = 3  # exit code where some scans could not be read


def run(cfg, workdir: str, source: str | None, output: str | None, *, keep_samples: bool = False) -> int:
    """Segment `source`, a file or a folder, into the folder `output`; returns 0, or 3 where some scans failed.

    Raises BadInput for a single file that cannot be read, and for whatever stops all: no model, nothing to segment,
    a folder with masks of another model.
    """
    began = time.monotonic()
    if not source:
        raise BadInput("no scans, nothing, in --input; give an image, a volume or a folder of them")
    if not output:
        raise BadInput("no folder, nothing, in --output; give the folder that the masks go to")
    config.check(cfg)
    source, folder = pathlib.Path(source), pathlib.Path(output)
    items = scans.find(source, channels=cfg.data.channels, leave_out=folder)
    predictor = predict.load(workdir, cfg)
    with processes.first_alone("output folder"):
        outputs.check_folder(folder, _made_by(predictor, pathlib.Path(workdir)))
        with outputs.writing(folder):
            summary = outputs.Summary(folder, classes=cfg.data.classes)
            if processes.is_first():
                summary.merge_parts(cfg.data.classes)  # of a run that was killed
    diffusion = models.is_diffusion(cfg)
    kept = cfg.sampler.ensemble if keep_samples and diffusion else 0
    where = {
        item: outputs.paths(folder, item, classes=cfg.data.classes, diffusion=diffusion, samples=kept) for item in items
    }
    todo = [item for item in items if not (summary.has(item) and all(p.exists() for p in where[item].values()))]
    if len(todo) < len(items) and processes.is_first():
        console.tell(f"{len(items) - len(todo)} of {len(items)} scans done before, in {folder}", sys.stderr)
    failed = _share(todo, predictor, where, summary, keep_samples=kept > 0, alone=source.is_file())
    if not processes.is_first():
        return FAILED if failed else 0
    counts = {"done": len(todo) - len(failed), "skipped": len(items) - len(todo), "failed": len(failed)}
    closing.segmented(folder, **counts, seconds=time.monotonic() - began)
    if failed:
        print(f"biedsnet: {len(failed)} of {len(items)} scans failed:", file=sys.stderr)
        for line in failed:
            print(f"  {line}", file=sys.stderr)
    return FAILED if failed else 0


def _share(todo, predictor, where, summary, **options) -> list[str]:
    """Segment `todo`, each process its scans; returns what was wrong with those that failed, of all processes."""
    if not processes.several():
        return _segment(todo, predictor, where, summary, **options)
    folder, classes = summary.path.parent, predictor.cfg.data.classes
    processes.barrier("scans chosen")  # by what is finished, which changes from here on
    with outputs.writing(folder):
        if processes.is_first():
            for item in todo:
                summary.forget(item)
        part = outputs.Summary(folder, classes=classes, part=jax.process_index())
    mine = todo[jax.process_index() :: jax.process_count()]
    failed = processes.gather(_segment(mine, predictor, where, part, **options))
    if processes.is_first():
        with outputs.writing(folder):
            summary.merge_parts(classes)
    processes.barrier("merged")
    return [line for lines in failed for line in lines]


def _segment(todo, predictor, where, summary, *, keep_samples, alone) -> list[str]:
    """Do every scan; returns what was wrong with those that failed."""
    failed = []
    bar = progress.Progress("predict", sum(item.depth for item in todo), quiet=not processes.is_first())
    with contextlib.closing(bar):
        for job in _read_ahead(_jobs(todo, predictor.cfg.eval.batch_size), predictor.cfg.data.channels):
            good = []
            for item, scan in job:
                if isinstance(scan, BadInput):
                    if alone:
                        raise scan
                    failed.append(str(scan))
                    bar.warn(f"skipped: {scan}")
                    bar.advance(item.depth)
                    continue
                good.append(scan)
                for note in scan.notes:
                    bar.warn(f"warning: {note}")
            if good:
                slices = [scan.slices for scan in good]
                predictions = predictor.predict(slices, keep_samples=keep_samples, done=bar.advance)
                for scan, prediction in zip(good, predictions):
                    with outputs.writing(where[scan.item]["mask"]):
                        summary.forget(scan.item)
                        summary.add(outputs.write(scan, prediction, where[scan.item]))
    return failed


def _jobs(items, batch_size) -> list[list[scans.Item]]:
    """Pictures in groups that fill a batch; each volume by itself."""
    jobs, group = [], []
    for item in items:
        if item.kind != "picture":
            jobs.append([item])
            continue
        group.append(item)
        if len(group) == batch_size:
            jobs.append(group)
            group = []
    return jobs + ([group] if group else [])


def read(items: Sequence[scans.Item], channels: int) -> list[scans.Scan | BadInput]:
    """Each scan, or what is wrong with it."""
    found = []
    for item in items:
        try:
            found.append(scans.read(item, channels=channels))
        except BadInput as error:
            found.append(error)
        except MemoryError:
            found.append(BadInput(f"too large for the memory, {item.depth} slices, {item.files[0]}; cut it into parts"))
    return found


def _read_ahead(jobs, channels) -> Iterator[list[tuple[scans.Item, scans.Scan | BadInput]]]:
    """The scans of each job, or what is wrong with them, the next job being read meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(read, job, channels) for job in jobs[:1]]
        for number, job in enumerate(jobs):
            found = coming.pop().result()
            if number + 1 < len(jobs):
                coming.append(pool.submit(read, jobs[number + 1], channels))
            yield list(zip(job, found))


def _made_by(predictor, workdir) -> dict:
    """What must be the same for masks to share a folder."""
    cfg = predictor.cfg
    return {
        "model": cfg.row or cfg.network,
        "config": hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest()[:16],
        "checkpoint_step": predictor.step,
        "seed": cfg.seed,
        "fusion": cfg.fusion,
        "threshold": cfg.threshold,
        **({f"sampler.{k}": v for k, v in config.sampling(cfg).items()} if models.is_diffusion(cfg) else {}),
    }
