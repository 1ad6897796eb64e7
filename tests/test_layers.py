"""Packages import what they may, libraries are used where they belong, without cycles.

Imports are read from the syntax trees, so that one inside a function counts too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "biedsnet_jax"

# What a package may import beside `errors`, `types` and itself, in reading order.
ALLOWED = {
    "errors": (),
    "types": (),
    "commands": (),
    "runtime": (),
    "scoring": ("runtime",),
    "data": ("runtime",),
    "networks": (),
    "diffusion": (),
    "segmenters": ("networks", "diffusion"),
    "checkpoints": ("runtime",),
    "config": ("runtime", "data", "networks", "diffusion", "segmenters", "checkpoints"),
    "prediction": ("runtime", "scoring", "data", "segmenters", "checkpoints", "config"),
    "reporting": ("runtime", "scoring", "checkpoints"),
    "evaluation": (
        "runtime", "scoring", "data", "segmenters", "checkpoints", "config", "prediction",
        "reporting",
    ),
    "importing": ("runtime", "networks", "checkpoints", "config"),
    "training": (
        "runtime", "scoring", "data", "segmenters", "checkpoints", "config", "prediction",
        "reporting", "evaluation", "importing",
    ),
    "serving": ("runtime", "data", "config", "prediction", "reporting"),
    "exporting": ("runtime", "scoring", "data", "config", "prediction"),
    "benchmarking": ("runtime", "segmenters", "checkpoints", "config", "prediction", "training"),
    "api": ("runtime", "config", "training", "evaluation", "prediction"),
    # The names of the Python API, which the package's own __init__ loads when asked.
    "": ("api", "prediction"),
    "main": (
        "commands", "runtime", "config", "training", "evaluation", "prediction", "reporting",
        "serving", "exporting", "importing", "benchmarking",
    ),
}  # fmt: skip

# What main may import at its top; all else stands inside the function of a mode.
AT_THE_TOP_OF_MAIN = ("__version__", "errors", "commands", "runtime", "config")

# Outside libraries that only some packages may import.
ONLY_IN = {
    "jax": (
        "runtime", "networks", "diffusion", "segmenters", "checkpoints", "config", "prediction",
        "evaluation", "training", "exporting", "importing", "benchmarking",
    ),
    "flax": (
        "networks", "segmenters", "checkpoints", "config", "exporting", "importing", "benchmarking",
    ),
    "flax.linen": ("networks", "segmenters", "config"),
    "optax": ("checkpoints", "config", "evaluation", "training"),
    "absl.flags": ("main",),
    "absl.app": ("main",),
    "ml_collections.config_flags": ("main",),
    "tensorflow": (),
    "torch": ("importing",),
    "orbax": ("checkpoints", "runtime"),
    "grain": ("data",),
    "tensorboardX": ("runtime",),
    "safetensors": ("importing",),
    "platformdirs": ("runtime",),
    "pydicom": ("data", "serving"),
    "tensorflow_datasets": ("data",),
    "rich": ("runtime",),
    "matplotlib": ("prediction",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
}  # fmt: skip


def imports(
    path: Path, package: str = "biedsnet_jax", *, at_the_top: bool = False
) -> set[str]:
    """Finds the dotted names that a file imports; a name of a module is module.name.

    Relative imports are made absolute. With `at_the_top`, those inside functions are
    left out.
    """
    tree = ast.parse(path.read_text(), filename=str(path))
    if at_the_top:
        tree.body = [
            node for node in tree.body if not isinstance(node, ast.FunctionDef)
        ]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = (package, *path.relative_to(_root(path, package)).parts)
                base = ".".join(filter(None, (*parts[: len(parts) - node.level], base)))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _root(path: Path, package: str) -> Path:
    return next(parent for parent in path.parents if parent.name == package)


def modules(package: Path) -> dict[str, Path]:
    """Finds every module by its dotted name below the package.

    An __init__ has the name of its package.
    """
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def inner_imports(package: Path) -> dict[str, set[str]]:
    """Finds the modules of the same package that each module imports."""
    known = modules(package)
    graph = {}
    for name, path in known.items():
        graph[name] = set()
        for imported in imports(path, package.name):
            below = imported.removeprefix(package.name + ".")
            if below == imported:
                continue
            # What is imported may be a function or class of the module.
            while below and below not in known:
                below = below.rpartition(".")[0]
            graph[name].add(below)
        graph[name] -= {name, ""}
    return graph


def violations(package: Path) -> list[str]:
    """Lists what breaks the rules above, a line each."""
    found, graph = [], inner_imports(package)
    for name, path in modules(package).items():
        own = name.split(".")[0]
        if own not in ALLOWED:
            found.append(f"{name} is of no package in ALLOWED")
        allowed = ("errors", "types", own, *ALLOWED.get(own, ()))
        for other in sorted(graph[name]):
            if other.split(".")[0] not in allowed:
                found.append(f"{name} imports {other}")
        for outside in sorted(imports(path, package.name)):
            for library, packages in ONLY_IN.items():
                if f"{outside}.".startswith(f"{library}.") and own not in packages:
                    found.append(f"{name} imports {outside}")
        if name == "main":
            for imported in sorted(imports(path, package.name, at_the_top=True)):
                first, _, rest = imported.partition(".")
                if (
                    first == package.name
                    and rest.split(".")[0] not in AT_THE_TOP_OF_MAIN
                ):
                    found.append(f"main imports {rest} outside of a function")
    return found + [f"cycle of {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Lists cycles of imports, each once, from its first module by name."""
    found = []
    for start in sorted(graph):
        paths = [[start]]
        seen = set()
        while paths:
            path = paths.pop()
            for other in sorted(graph[path[-1]]):
                if other == start:
                    found.append([*path, start])
                    paths = []
                    break
                if other not in seen and other > start:
                    seen.add(other)
                    paths.append([*path, other])
    return found


def test_every_package_imports_only_what_it_may():
    assert violations(PACKAGE) == []


def test_every_package_has_its_line():
    assert {name.split(".")[0] for name in modules(PACKAGE)} == set(ALLOWED)
    assert {name for allowed in ALLOWED.values() for name in allowed} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {
                "diffusion/sampler.py": "def late():\n    from ..networks import unet",
                "networks/unet.py": "",
            },
            "diffusion.sampler imports networks.unet",
        ),
        (
            {"reporting/report.py": "import jax.numpy as jnp"},
            "reporting.report imports jax.numpy",
        ),
        ({"extra/module.py": ""}, "extra.module is of no package in ALLOWED"),
        (
            {"main.py": "from pack.training import train", "training/train.py": ""},
            "main imports training.train outside of a function",
        ),
        (
            {
                "networks/a.py": "from pack.networks import b",
                "networks/b.py": "from .c import f",
                "networks/c.py": "import pack.networks.a",
            },
            "cycle of networks.a -> networks.b -> networks.c -> networks.a",
        ),
    ],
    ids=[
        "a package",
        "a library",
        "a package without a line",
        "the top of main",
        "a cycle",
    ],
)
def test_a_made_up_wrong_import_is_caught(tmp_path, files, said):
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path / "pack") == [said]


def test_no_module_loads_tensorflow_or_torch():
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print([name for name in ('tensorflow', 'torch') if name in sys.modules])"
    every = [f"biedsnet_jax.{name}" for name in modules(PACKAGE) if name]
    line = [sys.executable, "-c", code, *every]
    done = subprocess.run(line, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("prediction.predict", ("biedsnet_jax.evaluation", "biedsnet_jax.reporting")),
        pytest.param(
            "exporting.export",
            ("biedsnet_jax.evaluation", "biedsnet_jax.prediction.outputs"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "importing.import_weights",
            ("biedsnet_jax.evaluation",),
            marks=pytest.mark.slow,
        ),
        ("reporting.report", ("jax", "flax")),
        ("reporting.info", ("jax", "flax")),
    ],
)
def test_a_mode_loads_only_what_it_needs(module, without):
    code = f"import sys, biedsnet_jax.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    unwanted = tuple(f"{name}." for name in without)
    assert [name for name in loaded if f"{name}.".startswith(unwanted)] == []
