"""The advice to cross-validate, at the start of a run that tests few cases."""

from ml_collections import ConfigDict

from biedsnet_jax.config.build_data import SPLITS, Data
from biedsnet_jax.reporting import advice
from biedsnet_jax.scoring.false_lesions import number

# Fewer test cases say next to nothing of others.
FEWEST = 3


def line(cfg: ConfigDict, data: Data) -> str:
    """Names split.folds where fewer than FEWEST cases are tested; else empty.

    It is empty too where the run is a fold, or a student, which keeps the split of its
    teacher, and where the cases are too few for folds.
    """
    tested = len(data.cases("test"))
    cases = {case for side in SPLITS for case in data.cases(side)}
    folds = advice.count_folds(len(cases))
    is_dealt = not cfg.split.folds or _is_named(cfg.split)
    if tested >= FEWEST or not folds or not is_dealt or "distill" in cfg:
        return ""
    first = ""
    if _is_named(cfg.split):
        first = "leave out split.train, split.val and split.test, "
    elif data.source.facts.sides:
        first = "put the cases of train, val and test into one folder, "
    return (
        f"{number(tested, 'test case')} can mislead. To test all {len(cases)}, {first}train "
        f"--config.split.folds={folds} with --config.split.fold=0 to {folds - 1}, each into "
        "a workdir of its own, and give all of them to --mode=report"
    )


def _is_named(split) -> bool:
    """Whether the config names the cases of the sides, which goes before folds."""
    return bool(split.train or split.val or split.test)
