"""Segments slices with the program in this file's folder.

    python load.py SLICES.npy MASKS.npz

It needs `pip install jax numpy flatbuffers`, no more. SLICES.npy holds "b h w c", in the
units of the training files and at the size that export.json names, since nothing is
resized here. Masks are where the probability exceeds the threshold of its class; what else
was decided for them is in export.json, and is not applied here. For research, not for diagnosis.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export


def load(folder):
    """Returns what export.json says, and a function from slices to "b h w k" maps."""
    about = json.loads((folder / "export.json").read_text())
    program = jax.jit(
        export.deserialize(bytearray((folder / "predict.stablehlo").read_bytes())).call
    )
    weights = jax.device_put(dict(np.load(folder / "weights.npz")))

    # `first` is the number of slices[0] in its scan, which chooses the noise.
    def predict(slices, seed=about["seed"], first=0):
        number = np.arange(first, first + len(slices), dtype=np.int32)
        return jax.device_get(
            program(weights, slices.astype(np.float32), number, np.uint32(seed))
        )

    return about, predict


if __name__ == "__main__":
    about, predict = load(pathlib.Path(__file__).parent)
    slices = np.load(sys.argv[1])
    shape = about["inputs"]["image"]["shape"]
    if slices.ndim != 4 or list(slices.shape[1:]) != shape[1:]:
        sys.exit(
            f"{sys.argv[1]} has slices of shape {slices.shape}. Bring them to {shape}, with "
            "any b."
        )
    maps = predict(slices)
    thresholds = np.array(about["thresholds"], np.float32)
    np.savez(sys.argv[2], mask=maps["probability"] > thresholds, **maps)
    if about["not_applied"]:
        print(f"Not applied to these masks: {about['not_applied']}.")
