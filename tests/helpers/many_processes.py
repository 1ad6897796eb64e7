"""One of several processes of `test_processes.py`.

It joins the others, then does the jobs of SPEC.json in order:

python tests/helpers/many_processes.py SPEC.json PROCESS_ID
"""

import json
import os
import signal
import sys
import threading
import time
import zlib
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.data import pipeline
from biedsnet_jax.errors import BadInput, Preempted
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.prediction import predict
from biedsnet_jax.runtime import devices, processes
from biedsnet_jax.training import train
from configs import phantom

STEPS = 4
# Others go on from the checkpoint of this step.
CUT = 2
FIELDS = {
    "data.size": 16,
    "data.phantom.n_cases": 4,
    "data.phantom.slices_per_case": 7,
    # The 7 test images do not divide by 4 devices.
    "split.fractions": (0.5, 0.25, 0.25),
    # The wider level has arrays that are large enough for FSDP to cut.
    "networks.biedsnet.channels": (8, 32),
    "networks.biedsnet.blocks_per_level": 1,
    "networks.biedsnet.bffm": False,
    "networks.biedsnet.attention": "none",
    "networks.biedsnet.second_skip": False,
    "networks.biedsnet.reduction": 4,
    "loss.supervision_weights": (1.0,),
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.learning_rate": 0.01,
    "train.warmup_steps": 0,
    "eval.every": 0,
    "eval.val_images": 5,
    "eval.val_ensemble": 1,
    "eval.batch_size": 4,
    "sampler.steps": 2,
    "sampler.ensemble": 1,
    "checkpoint.every": 2,
    "checkpoint.keep_latest": 2,
    "log.every": 1,
    "log.tensorboard": False,
}


def toy(**fields):
    """Makes the config of a job; `__` in a field's name stands for a dot."""
    cfg = phantom.get_config()
    cfg.update_from_flattened_dict(
        FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    )
    cfg.compile_cache = os.environ.get("TEST_COMPILE_CACHE", "")
    return cfg


def recording(make, seen: list):
    """Wraps `train_batches` so that a checksum of every row goes into `seen`."""

    def batches(*args, **fields):
        for batch in make(*args, **fields):
            seen.append([zlib.crc32(row.tobytes()) for row in batch["image"]])
            yield batch

    return batches


def terminate_at(step: int, workdir: Path) -> None:
    """Sends SIGTERM to this process when `workdir` has logged `step`."""

    def wait():
        path = workdir / "metrics.jsonl"
        while not (path.exists() and len(path.read_text().splitlines()) >= step):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def restored(workdir: Path, mesh) -> dict[str, int]:
    """Restores step CUT onto a mesh; returns a checksum of every array by its name."""
    cfg = toy()
    model, (optimizer, _) = build_model.build(cfg), make_optimizer(cfg.train)
    like = jax.eval_shape(
        lambda: train_state.create(build_model.init_variables(model, cfg), optimizer)
    )
    with checkpoint.Checkpoints(workdir, keep_latest=2) as checkpoints:
        state = checkpoints.restore(CUT, like, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(
        multihost_utils.process_allgather(state, tiled=True)
    )
    return {
        jax.tree_util.keystr(path): zlib.crc32(leaf.tobytes()) for path, leaf in leaves
    }


def main(spec: dict, process_id: int) -> None:
    devices.enable_compile_cache(toy().compile_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    processes.start(f"localhost:{spec['port']}", spec["processes"], process_id)
    make = pipeline.train_batches
    for job in spec["jobs"]:
        workdir, seen = Path(job["workdir"]), []
        pipeline.train_batches = recording(make, seen)
        if job["mode"] == "predict":
            try:
                code = predict.run(toy(), str(workdir), job["input"], job["output"])
            except BadInput as error:
                print(f"REFUSED {error}", flush=True)
                code = 2
            assert code == job["code"], code
            continue
        if job["mode"] == "evaluate":
            evaluate.run(toy(), str(workdir))
            continue
        if job["mode"] == "restore":
            found = restored(workdir, devices.make_mesh(fsdp=job["fsdp"]))
            if processes.is_first():
                Path(job["output"]).write_text(json.dumps(found))
            continue
        if "terminate_at" in job and process_id == jax.process_count() - 1:
            terminate_at(job["terminate_at"], workdir)
        try:
            train.train(toy(**job["fields"]), str(workdir))
        except Preempted as stop:
            print(f"PREEMPTED {stop}", flush=True)
        (workdir / f"rows_{process_id}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    jax.config.update("jax_num_cpu_devices", spec["devices"])
    main(spec, int(sys.argv[2]))
