"""Gives a workdir rules for its masks, as training decides them."""

from biedsnet_jax.prediction import postprocess
from biedsnet_jax.prediction.postprocess import Postprocess


def write(workdir, cfg, *, step=0, **rules):
    """Writes postprocess.json for the checkpoint of `step`; returns the rules."""
    made = Postprocess(cases=2, before=0.5, after=0.6, **rules)
    decision = {
        "checkpoint_step": step,
        "threshold": cfg.threshold,
        "fusion": cfg.fusion,
        "rules": made.to_json(),
    }
    postprocess.write(workdir, decision)
    return made
