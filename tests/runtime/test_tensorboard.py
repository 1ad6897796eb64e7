"""Files of events read by TensorBoard's own reader: curves, config, page HPARAMS."""

import re

import numpy as np
import pytest

from biedsnet_jax.evaluation import hparams as hyperparameters
from biedsnet_jax.scoring import metrics, pr_curve
from biedsnet_jax.training.run_log import RunLog
from configs import phantom

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="no tensorboard: pip install 'tensorboard>=2.18'",
)
tensor_util = pytest.importorskip("tensorboard.util.tensor_util")


def read(workdir):
    found = reader.EventAccumulator(
        str(workdir / "tensorboard"),
        size_guidance={reader.TENSORS: 0, reader.SCALARS: 0},
    )
    return found.Reload()


def numbers(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


# --- training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "tags"),
    [(1, ["pr_curve"]), (2, ["pr_curve/class_1", "pr_curve/class_2"])],
)
def test_precision_by_recall_of_each_validation(tmp_path, classes, tags):
    from tensorboard.plugins.pr_curve import metadata

    probability = np.zeros((1, 2, 2, classes), np.float32)
    probability[0, 0, 0], probability[0, 0, 1], probability[0, 1, 0] = 0.9, 0.6, 0.3
    truth = probability > 0.8
    # At 0.5 there is one each of true and false positives and negatives.
    truth[0, 1, 0] = True
    counts = pr_curve.Counts(classes)
    counts.add(probability, truth)
    with RunLog(tmp_path, step=0, to_tensorboard=True) as log:
        for step in (10, 20):
            log.write(step, {"val_dice": 0.5})
            log.curves(step, counts)
    found = read(tmp_path)
    assert sorted(found.Tags()["tensors"]) == tags
    assert numbers(found, "val_dice") == [(10, 0.5), (20, 0.5)]
    for tag in tags:
        plugin = found.SummaryMetadata(tag).plugin_data
        assert plugin.plugin_name == "pr_curves"
        assert metadata.parse_plugin_metadata(plugin.content).num_thresholds == 127
        events = found.Tensors(tag)
        assert [event.step for event in events] == [10, 20]
        curve = tensor_util.make_ndarray(events[-1].tensor_proto)
        # Rows: true and false positives, true and false negatives, precision, recall.
        # Columns: thresholds 0, 0.5 and 1.
        expected = [
            [2, 1, 0],
            [2, 1, 0],
            [0, 1, 2],
            [0, 1, 2],
            [0.5, 0.5, 0],
            [1, 0.5, 0],
        ]
        np.testing.assert_array_equal(curve[:, [0, 63, 126]], expected)


def test_the_config_is_a_text_that_a_resumed_run_writes_again(tmp_path):
    for start, steps in ((0, 30), (7, 40)):
        with RunLog(tmp_path, step=start, to_tensorboard=True) as log:
            fields = {"train.steps": steps, "data.hint": "a | b\n`c`"}
            log.config(start, fields | {"data.labels": (), "row": ""})
    found = read(tmp_path)
    tag = "config/text_summary"
    assert found.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    events = found.Tensors(tag)
    assert [event.step for event in events] == [0, 7]
    lines = tensor_util.make_ndarray(events[1].tensor_proto)[0].decode().splitlines()
    assert lines == [
        "| field | value |",
        "| :-- | :-- |",
        "| train.steps | `40` |",
        r"| data.hint | `a \| b 'c'` |",
        "| data.labels | `()` |",
        "| row |  |",
    ]


# --- evaluation -----------------------------------------------------------------------


def evaluated(workdir, *, dice, val_dice=0.75, variant=None, **fields):
    """Records the hyperparameters of a workdir on the page HPARAMS."""
    cfg = phantom.get_config(variant)
    cfg.update_from_flattened_dict(fields)
    place = workdir / "checkpoints" / "40" / "metrics"
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics").write_text(
        "{}" if val_dice is None else f'{{"val_dice": {val_dice}}}'
    )
    standard = {name: {"mean": None} for name in (*metrics.OVERLAPS, *metrics.SURFACE)}
    standard["dice"] = {"mean": dice}
    hyperparameters.record(cfg, workdir, {"checkpoint_step": 40, "standard": standard})


def hparams(found):
    """(columns, values of the run, metrics, whether it has ended) of the page HPARAMS."""
    from tensorboard.plugins.hparams import metadata

    def content(tag):
        return found.SummaryMetadata(tag).plugin_data.content

    experiment = metadata.parse_experiment_plugin_data(content(metadata.EXPERIMENT_TAG))
    start = metadata.parse_session_start_info_plugin_data(
        content(metadata.SESSION_START_INFO_TAG)
    )
    end = metadata.parse_session_end_info_plugin_data(
        content(metadata.SESSION_END_INFO_TAG)
    )
    values = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in start.hparams.items()
    }
    columns = [info.name for info in experiment.hparam_infos]
    return (
        columns,
        values,
        [info.name.tag for info in experiment.metric_infos],
        end.status,
    )


def test_a_run_that_was_tested_has_a_line_of_fields_and_scores(tmp_path):
    from tensorboard.plugins.hparams import api_pb2

    evaluated(tmp_path, dice=0.5)
    found = read(tmp_path)
    columns, values, tags, status = hparams(found)
    assert status == api_pb2.STATUS_SUCCESS
    assert values == {
        "row": "biedsnet",
        "network": "biedsnet",
        "method": "diffusion",
        "data.name": "phantom",
        "data.size": 64.0,
        "train.learning_rate": 2e-3,
        "train.steps": 210.0,
        "train.batch_size": 8.0,
        "seed": 0.0,
        "fusion": "mean",
        "sampler.method": "ddim",
        "sampler.steps": 1.0,
        "sampler.eta": 0.0,
        "sampler.spacing": "trailing",
        "sampler.ensemble": 2.0,
        "sampler.mirror": "",
    }
    assert set(values) == set(columns)
    assert numbers(found, "test/dice") == [(40, 0.5)]
    assert numbers(found, "best_val_dice") == [(40, 0.75)]
    assert {"test/dice", "best_val_dice", "test/hd95"} <= set(tags)
    # A score that is undefined has no value, though it has a column.
    assert "test/hd95" not in found.Tags()["scalars"]


def test_another_evaluation_replaces_the_line_and_leaves_the_curves(tmp_path):
    with RunLog(tmp_path, step=0, to_tensorboard=True) as log:
        log.write(40, {"loss": 0.25})
    evaluated(tmp_path, dice=0.5)
    (first,) = (tmp_path / "tensorboard").glob("*.test")
    # Renamed, as if it had not been written in the same second.
    first.rename(first.with_name(re.sub(r"\.\d{10}\.", ".1000000000.", first.name)))
    evaluated(tmp_path, dice=0.625, val_dice=None, **{"sampler.steps": 20})
    found = read(tmp_path)
    assert numbers(found, "loss") == [(40, 0.25)]
    assert numbers(found, "test/dice") == [(40, 0.625)]
    assert "best_val_dice" not in found.Tags()["scalars"]
    assert hparams(found)[1]["sampler.steps"] == 20
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_direct_method_has_the_same_columns_and_no_sampler(tmp_path):
    evaluated(tmp_path / "diffusion", dice=0.5)
    evaluated(tmp_path / "direct", dice=0.5, variant="unet")
    diffusion, direct = (
        hparams(read(tmp_path / name)) for name in ("diffusion", "direct")
    )
    assert diffusion[0] == direct[0] and diffusion[2] == direct[2]
    assert direct[1]["method"] == "direct" and direct[1]["network"] == "unet"
    assert not any(name.startswith(("sampler.", "fusion")) for name in direct[1])
