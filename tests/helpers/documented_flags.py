"""Checks the flags of a command that a page gives, without running it."""

import re
import shlex
from pathlib import Path

import absl_flags
from absl import flags
from places import ROOT

from biedsnet_jax import commands, main
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import get_field
from configs import default

SCRIPTS = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "launch").iterdir()]
# The reader gives the value: none stands there, or one such as DIR,DIR or HOST:PORT.
TO_FILL_IN = re.compile(r"|[A-Z_,:]+|.*\.\.\..*")


def check_flags(command: str) -> None:
    """Parses a command's flags, but for values that the reader has to fill in.

    Flags of a script are only looked for in its text; a command that names no script
    may have those of any. Raises BadInput, AttributeError or KeyError at what the
    package refuses.
    """
    words = [word for word in shlex.split(command) if word not in ("...", "--help")]
    if words[0] == "biedsnet":
        words = commands.as_flags(words)
    named = [path for path in SCRIPTS if str(path.relative_to(ROOT)) in words]
    # table1.sh and table2.sh hand their flags to rows.sh.
    if any(word.startswith("launch/table") for word in words):
        named.append(ROOT / "launch" / "rows.sh")
    if words[0].startswith("--"):
        named = SCRIPTS
    of_scripts = flags_of(named) - {"--config", "--workdir"}
    known, given = default.get_config(), []
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("--") and name not in of_scripts:
            if name.startswith("--config."):
                get_field(known, name.removeprefix("--config."))
            else:
                flags.FLAGS[name.removeprefix("--")]
            if not TO_FILL_IN.fullmatch(value):
                given.append(word)
    if not any(word.startswith("--config=") for word in given):
        given.insert(0, "--config=configs/nifti.py")
    absl_flags.forget()
    main.parse_flags(["test", *given])
    check_config(flags.FLAGS.config)


def flags_of(scripts: list[Path]) -> set[str]:
    """Flags that scripts define, for argparse, for SLURM or in a `case` of bash."""
    text = "\n".join(path.read_text() for path in scripts)
    argparse = re.findall(r'add_argument\(\s*"(--[\w-]+)"', text)
    return {*argparse, *re.findall(r"^ *(?:#SBATCH )?(--[\w-]+)=", text, re.MULTILINE)}
