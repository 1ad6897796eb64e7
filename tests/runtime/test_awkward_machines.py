"""A command in a bare environment: no home, no terminal, no UTF-8 locale, a cache that
cannot be written, another working folder.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from places import ROOT

# As cron, a batch system or a container starts a command; nothing is inherited.
BARE = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    # A folder in which nobody, root neither, can make another.
    "XDG_CACHE_HOME": "/sys/kernel",
}
# Python takes UTF-8 for these locales by itself, unless it is told not to.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = [{"LC_ALL": "POSIX"}, {"LANG": "C"}, ASCII]


def run(folder, *words, **environment):
    """Runs the command in `folder`; its output must be bytes of no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "biedsnet_jax.main", *words],
        cwd=folder,
        env=BARE | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale", [LOCALES[0], ASCII], ids=lambda locale: " ".join(locale)
)
def test_training_predicting_and_reporting(tmp_path, locale):
    config = ROOT / "configs" / "phantom.py"
    words = [f"--config={config}:unet,toy", "--workdir=runs/w", "--quiet"]
    done = run(tmp_path, *words, **locale)
    assert done.returncode == 0, done.stderr
    # The cache is warned of in one line, and used no more.
    warned = [line for line in done.stderr.splitlines() if line]
    assert len(warned) == 1 and b"/sys/kernel" in warned[0]
    assert (tmp_path / "runs" / "w" / "results.json").exists()

    # Its name is UTF-8 whatever the locale.
    (tmp_path / "in").mkdir()
    name = "Lösion" if locale is not ASCII else "lesion"
    image = Image.fromarray(
        np.arange(4096, dtype=np.uint16).astype(np.uint8).reshape(64, 64)
    )
    image.save(tmp_path / "in" / f"{name}.png")
    words = ["--mode=predict", "--workdir=runs/w", "--input=in", "--output=out"]
    done = run(tmp_path, *words, **locale)
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "out").glob(f"{name}*.png")] != []
    assert name in (tmp_path / "out" / "summary.csv").read_text("utf-8")

    done = run(tmp_path, "--mode=report", "--workdir=runs/w", **locale)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "w" / "report.html").read_text("utf-8").startswith("<!")


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(locale))
@pytest.mark.parametrize(
    "words",
    [
        ["--workdir=läuft", "--mode=report"],
        ["--config=größe.py", "--workdir=w"],
        ["--x=ü"],
    ],
    ids=lambda words: words[0][:6],
)
def test_a_mistake_is_one_line_in_every_locale(tmp_path, locale, words):
    done = run(tmp_path, *words, **locale)
    assert done.returncode == 2
    assert done.stderr.startswith(b"biedsnet: ") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []
