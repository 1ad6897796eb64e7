"""Workdirs as evaluation leaves them, made of blobs without a network."""

import csv
import json

import numpy as np
from scipy import ndimage

from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.reporting import record
from biedsnet_jax.scoring import false_lesions, metrics


def blobs(rng, count, size, classes):
    """Draws (image, probability, truth) of slices; the last has no truth.

    Shapes are "count size size 1" for images, else "count size size classes".
    """
    noise = ndimage.gaussian_filter(
        rng.normal(size=(count, size, size, classes)), (0, size / 12, size / 12, 0)
    )
    noise /= noise.std()
    truth = noise > 1.2
    truth[-1] = False
    unsure = ndimage.gaussian_filter(rng.normal(size=noise.shape), (0, 1.5, 1.5, 0)) * 2
    probability = 1 / (1 + np.exp(-12 * (noise - 1.2) - 2 * unsure))
    image = noise.mean(-1, keepdims=True) + 0.3 * rng.normal(
        size=(count, size, size, 1)
    )
    return image, probability.astype(np.float32), truth


def closing_lines(results, workdir) -> str:
    """What a pipe gets at the end of an evaluation with these results."""
    s = results["standard"]
    low, high = s["dice"]["ci95"]
    return (
        f"test: {results['n_images']} slices of {results['n_cases']} cases, "
        f"{results['n_empty']} of {results['n_images']} masks empty\n"
        f"Dice {s['dice']['mean']:.4f} (95 % by case {low:.4f} to {high:.4f})  "
        f"IoU {s['iou']['mean']:.4f}  HD95 {s['hd95']['mean']:.4f} px  "
        f"{results['seconds_per_image']:.3f} s an image\n"
        + "".join(grid_lines(results))
        + "".join(f"{sentence}\n" for sentence in false_lesions.of_results(results))
        + f"{workdir}/results.json has the rest\n"
    )


def grid_lines(results) -> list[str]:
    """What a pipe gets of volumes and of the network's grid, where there are any."""
    lines = []
    if volumes := results.get("volumes"):
        means = [
            volumes[name]["mean"] for name in ("dice", "hd95_mm", "assd_mm", "nsd_mm")
        ]
        named = zip(("Dice", "HD95, mm", "ASSD, mm", "NSD"), means)
        text = "  ".join(f"{name} {mean:.4f}" for name, mean in named)
        noun = "volume" if volumes["n"] == 1 else "volumes"
        lines.append(f"volumes: {text}, of {volumes['n']} {noun}\n")
    if network := results.get("network_grid"):
        size = results["size"]
        dice = network["dice"]["mean"]
        lines.append(f"network's grid: Dice {dice:.4f} at {size}x{size}\n")
    return lines


def write(
    folder,
    *,
    seed=0,
    size=32,
    classes=1,
    count=8,
    threshold=0.5,
    steps=4,
    pictures=6,
    samples=2,
    absent=(),
    **fields,
):
    """A workdir with results.json, slices.csv, metrics.jsonl and report_data.npz;
    returns its (probability, truth).

    Classes that are `absent`, from 1, occur in no slice.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    image, probability, truth = blobs(rng, count, size, classes)
    truth[..., [label - 1 for label in absent]] = False
    tally, rows = Tally(classes, threshold), []
    for i in range(count):
        of_slice = [
            metrics.slice_row(
                pred=probability[i, ..., k] > threshold,
                truth=truth[i, ..., k],
                case=f"case {i // 3}",
                slice=f"{i:03d}",
                label=k + 1,
            )
            | metrics.paper_columns(
                pred=probability[i, ..., k] > threshold, truth=truth[i, ..., k]
            )
            for k in range(classes)
        ]
        rows += of_slice
        tally.add(probability[i], truth[i], [row["dice"] for row in of_slice])
    with (folder / "slices.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    chosen = np.array(tally.choose(pictures), np.int32).reshape(-1, 2)
    slices = image, probability, truth
    record.save(folder, _report_data(rng, slices, tally, chosen, steps, samples))
    results = {
        "row": "biedsnet",
        "network": "biedsnet",
        "seed": seed,
        "dataset": "blobs",
        "split": "test",
        "parameters": 1000,
        "gmacs_per_image": 1.5,
        "seconds_per_image": 0.25,
        "size": size,
        "train_steps": 40,
        "batch_size": 8,
        "checkpoint_step": 40,
        "sampler": {"method": "ddim", "steps": steps, "ensemble": samples},
        "fusion": "mean",
        "threshold": threshold,
        "nsd_tolerance": 2.0,
        "device": "1 x cpu",
    }
    results |= metrics.summarise(rows) | fields
    (folder / "results.json").write_text(json.dumps(results))
    _write_training(folder, seed)
    return probability, truth


def _report_data(rng, slices, tally, chosen, steps, samples) -> record.ReportData:
    """What the report shows of the chosen (slice, group); three are denoised."""
    numbers, groups = chosen.T
    image, probability, truth = (values[numbers] for values in slices)
    traced = probability[: 3 if steps else 0, None]
    share = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None, None, None]
    noise = rng.normal(size=(len(traced), steps, *probability.shape[1:]))
    information = (probability * 99).astype(np.uint8)
    splits = {"train": {"case 7": 3}, "val": {}, "test": {"case 0": 3}}
    return record.ReportData(
        facts={"versions": {"jax": "0.1"}, "splits": splits},
        dice=np.array(tally.dice),
        entropy=np.array(tally.entropy),
        histogram=tally.histogram,
        slices=numbers,
        groups=groups,
        images=[record.jpeg(one) for one in image],
        probability=record.levels(probability, tally.threshold),
        truth=truth.astype(np.uint8),
        mutual_information=information if samples > 1 else None,
        times=np.linspace(999, 99, steps).astype(np.int32),
        x_t=record.thinned(traced * share + noise * (1 - share)),
        x_0=record.levels(traced * (0.5 + 0.5 * share), tally.threshold),
    )


def _write_training(folder, seed) -> None:
    """Writes the config, with a text that could end a script early, and 40 steps."""
    (folder / "config.json").write_text(
        json.dumps({"seed": seed, "train": {"steps": 40, "note": "</script>"}})
    )
    lines = [
        {"step": s, "time": 1.7e9 + s, "loss": 1 / s, "val_dice": s / 50}
        for s in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
