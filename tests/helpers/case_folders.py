"""Folders of cases whose slices all differ, and runs that were started on them."""

import numpy as np
from PIL import Image

from biedsnet_jax.config import run_config, run_split
from configs import folder as folder_config
from configs import variants

SLICES = 2


def write(root, cases, *, first=0):
    """Writes `images/<case>/<slice>.png` and masks; returns `root`.

    The content of a case follows from its place in `cases`, counted from `first`.
    """
    for number, case in enumerate(cases, start=first):
        for z in range(SLICES):
            rng = np.random.default_rng(100 * number + z)
            image = rng.integers(0, 120, (16, 16))
            mask = np.zeros((16, 16))
            mask[4:10, 2 + number % 8 : 8 + number % 8] = 255
            for kind, pixels in (("images", image + 0.4 * mask), ("masks", mask)):
                path = root / kind / case / f"{z}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def cfg_of(root, **fields):
    """Makes the config of a toy on a folder; `__` in a field's name stands for a dot."""
    c = folder_config.get_config()
    variants.toy(c)
    c.update_from_flattened_dict(
        {"data.root": str(root), "compile_cache": "", "seed": 3}
    )
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return c


def start(cfg, workdir):
    """Leaves in `workdir` what training does before its first step; returns the data."""
    data = run_split.open_training(cfg, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    run_split.write(cfg, workdir, data)
    run_config.save(cfg, workdir / "config.json")
    return data


def sides(data):
    return {side: data.cases(side) for side in ("train", "val", "test")}
