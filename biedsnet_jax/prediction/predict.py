"""Mode predict: masks, maps and a summary for every image, volume and DICOM series of a
folder.

The next scan is read while one is segmented. What is finished is skipped when the
command is given again, unless the scan or the model changed. A scan that cannot be read
or written does not stop the others. Of several processes each takes a share of the
scans, on its own devices; they wait for each other at the start and at the end alone.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from biedsnet_jax.config import build_model
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.prediction import (
    closing,
    made_from,
    output_folder,
    outputs,
    scan_results,
    scans,
)
from biedsnet_jax.prediction import predictor as predict
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.runtime import console, files, lock, processes, progress

# exit code where some scans could not be segmented
FAILED = 3
# Fields that change no mask of given weights. A field that a later version adds counts
# until it is named here.
_NOT_READ = (
    "row",
    "compile_cache",
    "network_file",
    "data.source",
    "data.root",
    "data.name",
    "data.hint",
    "data.verify",
    "data.cache",
    "data.case",
    "data.min_foreground",
    "data.phantom.",
    "data.tfds.",
    "split.",
    "augment.",
    "loss.",
    "train.",
    "eval.",
    "checkpoint.",
    "parallel.",
    "log.",
    "distill.",
    "sampler.",
)


def run(
    cfg,
    workdir: str,
    source: str | None,
    output: str | None,
    *,
    keep_samples: bool = False,
) -> int:
    """Segment `source`, a file or a folder, into the folder `output`.

    Returns 0, or 3 where some scans failed. Raises BadInput for a single file that
    cannot be read, and for whatever stops all: no model, nothing to segment, a folder
    with masks of another model, or one that another run writes to.
    """
    began = time.monotonic()
    if not source:
        raise BadInput(
            "no scans, nothing, in --input; give an image, a volume or a folder of them"
        )
    if not output:
        raise BadInput(
            "no folder, nothing, in --output; give the folder that the masks go to"
        )
    check_config(cfg)
    source, folder = pathlib.Path(source), pathlib.Path(output)
    items, passed = scans.search(source, channels=cfg.data.channels, leave_out=folder)
    predictor = predict.load(workdir, cfg)
    draws = predictor.model.segmenter.draws_samples
    keep_samples = keep_samples and draws
    job = Job(
        folder,
        items,
        classes=cfg.data.classes,
        samples=cfg.sampler.ensemble if draws else 0,
        keep_samples=keep_samples,
        settings=_settings(cfg),
        weights=predictor.model.weights_digest(),
    )
    segment = functools.partial(
        _segment, predictor, keep_samples=keep_samples, alone=source.is_file()
    )
    with contextlib.ExitStack() as held:
        plan = _of_first(
            lambda: _prepare(
                job, held, pathlib.Path(workdir), predictor.model.step, passed
            )
        )
        if processes.is_first():
            _announce(job, plan)
        failed = _share(job, plan.todo, segment)
    if not processes.is_first():
        return FAILED if failed else 0
    counts = closing.Counts(
        done=len(plan.todo) - len(failed),
        skipped=len(items) - len(plan.todo),
        failed=len(failed),
        again=_reasons(plan, leave_out=failed),
        gone=plan.gone,
        passed=walk.summary(passed),
    )
    closing.segmented(folder, counts, seconds=time.monotonic() - began)
    if failed:
        print(f"biedsnet: {len(failed)} of {len(items)} scans failed:", file=sys.stderr)
        for line in failed.values():
            print(f"  {line}", file=sys.stderr)
    return FAILED if failed else 0


def _of_first(prepare):
    """The plan that `prepare` makes on the first process; all raise what it raises as
    BadInput.
    """
    if not processes.several():
        return prepare()
    said = {}
    if processes.is_first():
        try:
            said = {"plan": prepare()._asdict()}
        except BadInput as error:
            said = {"refused": str(error)}
    said = processes.gather(said)[0]
    if "refused" in said:
        raise BadInput(said["refused"])
    return output_folder.Plan(**said["plan"])


def _prepare(job, held, workdir, step, passed) -> output_folder.Plan:
    """Lock the folder until `held` closes, and see what is to be done."""
    with files.writing(job.folder, another="--output"):
        job.folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock.Lock(job.folder, another="--output"))
    model = output_folder.Model(
        workdir=workdir.resolve(),
        weights=job.weights,
        step=step,
        config=hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest()[:16],
    )
    plan = output_folder.plan(job, model)
    with files.writing(job.folder, another="--output"):
        walk.write_record(job.folder, passed)
    return plan


def _announce(job, plan) -> None:
    """Say what is skipped and why others are done again, and warn."""
    for note in plan.notes:
        processes.say(f"warning: {note}")
    skipped = len(job.items) - len(plan.todo)
    if skipped:
        before = f"{skipped} of {len(job.items)} scans done before, in {job.folder}"
        console.tell(before, sys.stderr)
    if again := _reasons(plan, leave_out=()):
        console.tell(closing.made_again(again), sys.stderr)
    short = [item for item in job.items if outputs.is_shortened(item, job.where[item])]
    if short:
        first = job.where[short[0]]["mask"].name
        cut = f"{len(short)} names are too long for their masks and are cut there"
        if len(short) == 1:
            cut = "1 name is too long for its masks and is cut there"
        console.tell(f"{cut}, such as {first}", sys.stderr)


def _reasons(plan, *, leave_out) -> Counter[str]:
    """How many scans are done again, by the reason."""
    return Counter(
        why for name, why in plan.todo.items() if why and name not in leave_out
    )


def _share(job, todo: dict[str, str], segment) -> dict[str, str]:
    """Segment `todo`, each process its scans; returns those that failed anywhere, and
    why.
    """
    items = [item for item in job.items if item.name in todo]
    if not processes.several():
        with files.writing(job.folder, another="--output"):
            results = scan_results.Results(job, todo)
        return segment(items, results)
    with files.writing(job.folder, another="--output"):
        if processes.is_first():
            scan_results.Results(job, todo).forget(todo)
        part = scan_results.Results(job, todo, part=jax.process_index())
    mine = items[jax.process_index() :: jax.process_count()]
    failed = processes.gather(segment(mine, part))
    if processes.is_first():
        with files.writing(job.folder, another="--output"):
            scan_results.Results(job, todo).merge_parts()
    processes.barrier("merged")
    return {name: what for each in failed for name, what in each.items()}


def _segment(predictor, items, results, *, keep_samples, alone) -> dict[str, str]:
    """Do every scan; returns those that failed, and why."""
    failed = {}
    cfg = predictor.model.config
    depth = sum(item.depth for item in items)
    bar = progress.Progress("predict", depth, quiet=not processes.is_first())

    def fail(item, error):
        what = f"{error}{results.fail(item)}"
        if alone:
            raise BadInput(what) from error
        failed[item.name] = what
        bar.warn(f"skipped: {what}")

    with contextlib.closing(bar):
        for group in _read_ahead(_jobs(items, cfg.eval.batch_size), cfg.data.channels):
            good = []
            for item, scan, inputs in group:
                if isinstance(scan, BadInput):
                    fail(item, scan)
                    bar.advance(item.depth)
                    continue
                good.append((scan, inputs))
                for note in scan.notes:
                    bar.warn(f"warning: {note}")
            if not good:
                continue
            slices = [scan.slices for scan, _ in good]
            predictions = predictor.predict(
                slices, keep_samples=keep_samples, done=bar.advance
            )
            for (scan, inputs), prediction in zip(good, predictions):
                if error := results.try_to_save(scan, prediction, inputs):
                    fail(scan.item, error)
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
            found.append(
                BadInput(
                    f"too large for the memory, {item.depth} slices, {item.files[0]}; cut it into parts"
                )
            )
    return found


def _read_described(
    item, channels
) -> tuple[scans.Scan | BadInput, list[made_from.File]]:
    """The scan, or what is wrong with it, and its files as they were read."""
    try:
        inputs = made_from.describe(item.files)
    except BadInput as error:
        return error, []
    except OSError as error:
        return BadInput(
            f"Cannot read {item.files[0]}: {reason(error)}. Replace or remove it."
        ), []
    (scan,) = read([item], channels)
    if not isinstance(scan, BadInput) and not all(
        map(made_from.File.is_same, inputs, item.files)
    ):
        scan = BadInput(
            f"{item.files[0]} changed while it was read. Give the command again."
        )
    return scan, inputs


def _read_ahead(jobs, channels) -> Iterator[list[tuple]]:
    """The items of each job with what `_read_described` gives; the next is read
    meanwhile.
    """

    def read_job(job):
        return [(item, *_read_described(item, channels)) for item in job]

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(read_job, job) for job in jobs[:1]]
        for number in range(len(jobs)):
            found = coming.pop().result()
            if number + 1 < len(jobs):
                coming.append(pool.submit(read_job, jobs[number + 1]))
            yield found


def _settings(cfg) -> dict:
    """What must be the same for masks to share a folder, in JSON's types."""
    own = f"networks.{cfg.network}."
    fields = {}
    for name, value in flat(cfg).items():
        of_others = name.startswith("networks.") and not name.startswith(own)
        if not of_others and not name.startswith(_NOT_READ):
            fields[name] = value
    fields["model"] = cfg.row or cfg.network
    if build_model.draws_samples(cfg):
        fields |= {f"sampler.{name}": value for name, value in cfg.sampler.items()}
    return json.loads(json.dumps(fields))
