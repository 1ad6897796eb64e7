"""Mode predict: masks, maps and a summary for every image, volume and DICOM series of a
folder.

The next scan is read while one is segmented. A later run skips finished scans, unless
the scan or the model changed. A scan that cannot be read or written does not stop the
others. Each of several processes segments a share of the scans on its own devices; they
wait for each other only at the start and at the end.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax

from biedsnet_jax.config import build_data, build_model, members, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import (
    closing,
    output_folder,
    outputs,
    predictor,
    read_ahead,
    scan_results,
    scans,
)
from biedsnet_jax.prediction.job import Job
from biedsnet_jax.prediction.result import written_values
from biedsnet_jax.runtime import console, files, lock, processes, progress

# Numbers of the classes in the masks by their names, where they have any.
LABELS = "labels.json"
# Exit code of a run in which some scans failed.
FAILED = 3
# Fields that do not change the masks of given weights. Any other field does, also one
# that a later version adds, until it is named here.
_NOT_READ = (
    *run_config.OF_TRAINING,
    "compile_cache",
    "network_file",
    "data.root",
    "data.hint",
    "data.verify",
    "data.cache",
    "data.class_names",
    "data.channel_names",
    "eval.",
    "checkpoint.",
    "parallel.",
    "log.",
    "sampler.",
)


def run(
    cfg,
    workdir: members.Workdirs,
    source: str | None,
    output: str | None,
    *,
    keep_samples: bool = False,
) -> int:
    """Segments `source`, a file or a folder, into the folder `output`.

    `workdir` may name several, with commas or as a list, whose models predict together.
    Returns 0, or 3 where some scans failed. Raises BadInput for a single file that
    cannot be read, and for whatever stops every scan: no model, nothing to segment, or
    an output folder that holds masks of another model or that another run writes to.
    """
    began = time.monotonic()
    if not source:
        raise BadInput("--input is missing. Give an image, a volume or a folder.")
    if not output:
        raise BadInput("--output is missing. Give the folder that the masks go to.")
    check_config(cfg)
    source, folder = pathlib.Path(source), pathlib.Path(output)
    items, passed = scans.search(source, channels=cfg.data.channels, leave_out=folder)
    loaded = predictor.load(workdir, cfg)
    model = loaded.model
    job = Job(
        folder,
        items,
        classes=cfg.data.classes,
        samples=model.sample_count,
        uncertainties=model.uncertainties,
        keep_samples=keep_samples and model.sample_count > 0,
        settings=_settings(cfg),
        weights=model.weights_digest(),
        class_names=cfg.data.class_names,
    )
    first = members.folders(workdir)[0]
    identity = output_folder.Model(
        workdir=first.resolve(),
        weights=job.weights,
        step=model.step,
        config=hashlib.sha256((first / "config.json").read_bytes()).hexdigest()[:16],
        members=model.members,
    )

    def prepare():
        return _prepare(job, locks, identity, passed)

    def segment(items, results):
        return _segment(loaded, items, results, alone=source.is_file())

    with contextlib.ExitStack() as locks:
        plan = _on_first(prepare)
        if processes.is_first():
            _announce(job, plan)
        failed = _share(job, plan.todo, segment)
    if processes.is_first():
        _report(job, plan, failed, walk.summary(passed), time.monotonic() - began)
    return FAILED if failed else 0


def _on_first(prepare: Callable[[], output_folder.Plan]) -> output_folder.Plan:
    """Calls `prepare` on the first process; every process returns its plan.

    Every process raises its BadInput too.
    """
    if not processes.several():
        return prepare()
    outcome = {}
    if processes.is_first():
        try:
            outcome = {"plan": prepare()._asdict()}
        except BadInput as error:
            outcome = {"refused": str(error)}
    outcome = processes.gather(outcome)[0]
    if "refused" in outcome:
        raise BadInput(outcome["refused"])
    return output_folder.Plan(**outcome["plan"])


def _prepare(job, locks, model, passed) -> output_folder.Plan:
    """Locks the output folder until `locks` closes, and plans the run."""
    with job.writing():
        job.folder.mkdir(parents=True, exist_ok=True)
    locks.enter_context(lock.Lock(job.folder, another="--output"))
    plan = output_folder.plan(job, model)
    with job.writing():
        walk.write_record(job.folder, passed)
        if job.class_names:
            files.write_json(job.folder / LABELS, _labels(job))
    return plan


def _labels(job) -> dict[str, int]:
    """The number of each class in a mask, by its name."""
    labels = [tuple(own) for own in job.settings["data.labels"]]
    labels = labels or [(k + 1,) for k in range(job.classes)]
    return {"background": 0} | dict(zip(job.class_names, written_values(labels)))


def _announce(job, plan):
    """Prints warnings, and what is skipped and why other scans are done again."""
    for note in plan.notes:
        processes.say(f"warning: {note}")
    skipped = len(job.items) - len(plan.todo)
    if skipped:
        before = f"{skipped} of {len(job.items)} scans done before, in {job.folder}"
        console.tell(before, sys.stderr)
    again = _reasons(plan)
    if again:
        console.tell(closing.made_again(again), sys.stderr)
    short = [item for item in job.items if outputs.is_shortened(item, job.where[item])]
    if short:
        example = job.where[short[0]]["mask"].name
        cut = f"names too long for their masks are cut there: {len(short)}"
        console.tell(f"{cut}, such as {example}", sys.stderr)


def _report(job, plan, failed, passed, seconds):
    """Prints how many scans were segmented, and the reason of every failure."""
    counts = closing.Counts(
        done=len(plan.todo) - len(failed),
        skipped=len(job.items) - len(plan.todo),
        failed=len(failed),
        again=_reasons(plan, leave_out=failed),
        gone=plan.gone,
        passed=passed,
    )
    closing.segmented(job.folder, counts, seconds=seconds)
    if failed:
        header = f"biedsnet: {len(failed)} of {len(job.items)} scans failed:"
        print(header, *failed.values(), sep="\n  ", file=sys.stderr)


def _reasons(plan, *, leave_out=()) -> Counter[str]:
    """Counts the scans that are done again, by the reason."""
    return Counter(
        why for name, why in plan.todo.items() if why and name not in leave_out
    )


def _share(job, todo: dict[str, str], segment) -> dict[str, str]:
    """Segments the scans `todo`, each process its share.

    Returns the scans that failed on any process, and why.
    """
    items = [item for item in job.items if item.name in todo]
    if not processes.several():
        with job.writing():
            results = scan_results.Results(job, todo)
        return segment(items, results)
    with job.writing():
        if processes.is_first():
            scan_results.Results(job, todo).forget(todo)
        part = scan_results.Results(job, todo, part=jax.process_index())
    share = items[jax.process_index() :: jax.process_count()]
    failed = processes.gather(segment(share, part))
    if processes.is_first():
        with job.writing():
            scan_results.Results(job, todo).merge_parts()
    processes.barrier("merged")
    return {name: why for process in failed for name, why in process.items()}


def _segment(
    loaded: predictor.Predictor,
    items: Sequence[scans.Item],
    results: scan_results.Results,
    *,
    alone: bool,
) -> dict[str, str]:
    """Segments every scan; returns those that failed, and why.

    Raises BadInput for a failing scan that is `alone`.
    """
    failed = {}
    cfg = loaded.model.config
    depth = sum(item.depth for item in items)
    bar = progress.Progress("predict", depth, quiet=not processes.is_first())

    def fail(item, error):
        message = f"{error}{results.fail(item)}"
        if alone:
            raise BadInput(message) from error
        failed[item.name] = message
        bar.warn(f"skipped: {message}")

    groups = read_ahead.groups(items, cfg.eval.batch_size)
    with contextlib.closing(bar):
        for group in read_ahead.read_groups(
            groups, cfg.data.channels, build_data.plane(cfg)
        ):
            readable = []
            for one in group:
                if error := _why_not(loaded, one):
                    fail(one.item, error)
                    bar.advance(one.item.depth)
                    continue
                readable.append(one)
                # The header was counted in axial slices, or a series by its files.
                bar.expect(len(one.scan.slices) - one.item.depth)
                for note in one.scan.notes:
                    bar.warn(f"warning: {note}")
            if not readable:
                continue
            predictions = loaded.predict(
                [one.scan for one in readable],
                keep_samples=results.job.keep_samples,
                done=bar.advance,
            )
            for one, prediction in zip(readable, predictions):
                error = results.try_to_save(one.scan, prediction, one.inputs)
                if error:
                    fail(one.item, error)
    return failed


def _why_not(loaded: predictor.Predictor, one: read_ahead.Read) -> BadInput | None:
    """What is wrong with a scan that was read, or with its grid."""
    if isinstance(one.scan, BadInput):
        return one.scan
    try:
        loaded.way(one.scan)
    except BadInput as error:
        return BadInput(f"{one.item.files[0]}: {error}")
    return None


def _settings(cfg) -> dict:
    """Returns what masks in one folder have in common, in JSON's types."""
    own = f"networks.{cfg.network}."
    fields = {}
    for name, value in flat(cfg).items():
        of_others = name.startswith("networks.") and not name.startswith(own)
        if not of_others and not name.startswith(_NOT_READ):
            fields[name] = value
    fields["model"] = cfg.row or cfg.network
    if build_model.draws_samples(cfg):
        fields |= {f"sampler.{name}": value for name, value in cfg.sampler.items()}
    fields["sampler.mirror"] = cfg.sampler.mirror
    # A round trip makes lists of tuples, so that it equals what predict.json holds.
    return json.loads(json.dumps(fields))
