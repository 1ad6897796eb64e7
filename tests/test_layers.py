"""The package's layers: imports point up one list, leaf packages know nothing of each other, each outside library has
its place. Read from the syntax trees, so that an import inside a function counts too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "biedsnet_jax"

# In reading order: a module imports from lines above its own, and within a package from its neighbours without a cycle.
ORDER = [
    "errors", "types", "runtime", "checkpoints", "data", "scoring", "reporting", "networks", "diffusion",
    "segmenters", "config", "evaluation", "training", "benchmarking", "importing", "prediction", "exporting",
    "serving", "main",
]  # fmt: skip

# Leaves, and what of the package they may know beside errors, types and themselves.
LEAVES = {
    "runtime": (),
    "scoring": ("runtime",),
    "data": ("runtime",),
    "networks": (),
    "diffusion": (),
}

# Outside libraries that only some layers may import.
ONLY_IN = {
    "flax.linen": ("networks", "segmenters", "config"),
    "absl.flags": ("main",),
    "absl.app": ("main",),
    "ml_collections.config_flags": ("main",),
    "tensorflow": (),
    "torch": ("importing",),
    "orbax": ("checkpoints", "runtime"),
    "grain": ("data",),
    "tensorboardX": ("runtime",),
    "rich": ("runtime",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
}


def imports(path: Path, package: str = "biedsnet_jax") -> set[str]:
    """Dotted names that a file imports, a name taken from a module as module.name; relative imports made absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
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
    """Every module of a package by its dotted name below it; a package's __init__ by the package's."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def inner_imports(package: Path) -> dict[str, set[str]]:
    """For each module, the modules of the same package that it imports."""
    known = modules(package)
    graph = {}
    for name, path in known.items():
        graph[name] = set()
        for imported in imports(path, package.name):
            below = imported.removeprefix(package.name + ".")
            if below == imported:
                continue
            while below and below not in known:  # a function or class: its module
                below = below.rpartition(".")[0]
            graph[name].add(below)
        graph[name] -= {name, ""}
    return graph


def violations(package: Path, order: list[str], leaves: dict, only_in: dict) -> list[str]:
    """What breaks the layers, one line each."""
    graph, known = inner_imports(package), modules(package)
    layer = {name: name.split(".")[0] for name in graph}
    found = [f"{name} has no place in the order" for name in graph if name and layer[name] not in order]
    place = {name: order.index(layer[name]) for name in graph if layer[name] in order}
    for name, imported in sorted(graph.items()):
        for other in sorted(imported):
            if place.get(name, len(order)) < place.get(other, 0):
                found.append(f"{name} imports {other}, which stands below it")
            allowed = ("errors", "types", layer[name], *leaves.get(layer[name], ()))
            if layer[name] in leaves and layer[other] not in allowed:
                found.append(f"leaf {name} imports {other}")
        for outside in sorted(imports(known[name], package.name)):
            for library, layers in only_in.items():
                if f"{outside}.".startswith(f"{library}.") and layer[name] not in layers:
                    found.append(f"{name} imports {outside}")
    return found + [f"cycle of {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """A cycle through each module that lies on one and is its first by name."""
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


def test_the_package_keeps_its_layers():
    assert violations(PACKAGE, ORDER, LEAVES, ONLY_IN) == []


def test_the_order_names_nothing_twice_and_nothing_that_is_gone():
    assert len(set(ORDER)) == len(ORDER)
    assert set(ORDER) == {name.split(".")[0] for name in modules(PACKAGE) if name}


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("losses.py", "from pack import trainer", "losses imports trainer, which stands below it"),
        ("losses.py", "from pack.types import Mask", None),
        ("losses.py", "def late():\n    import pack.trainer", "losses imports trainer, which stands below it"),
        ("losses.py", "from .trainer import train", "losses imports trainer, which stands below it"),
        ("diffusion.py", "from pack.networks.unet import UNet", "leaf diffusion imports networks.unet"),
        ("networks/unet.py", "from pack import losses", "leaf networks.unet imports losses"),
        ("networks/unet.py", "from .blocks import conv", None),
        ("networks/unet.py", "from ..trainer import train", "networks.unet imports trainer, which stands below it"),
        ("networks/blocks.py", "from pack.networks.unet import UNet\n", None),
        ("networks/blocks.py", "import flax.linen as nn", None),
        ("trainer.py", "import flax.linen as nn", "trainer imports flax.linen"),
        ("trainer.py", "from flax import linen", "trainer imports flax.linen"),
        ("trainer.py", "from flax import traverse_util", None),
        ("trainer.py", "from absl import flags", "trainer imports absl.flags"),
        ("trainer.py", "import tensorflow_datasets", None),
        ("trainer.py", "import tensorflow.io", "trainer imports tensorflow.io"),
        ("extra.py", "", "extra has no place in the order"),
    ],
)
def test_a_made_up_import_is_caught(tmp_path, file, line, said):
    package = tmp_path / "pack"
    (package / "networks").mkdir(parents=True)
    files = ("__init__", "types", "diffusion", "losses", "trainer", "networks/__init__", "networks/blocks")
    for name in (*files, "networks/unet"):
        (package / f"{name}.py").write_text("")
    (package / file).write_text(line)
    found = violations(package, ["types", "networks", "diffusion", "losses", "trainer"], LEAVES, ONLY_IN)
    if said is None:
        assert found == []
    else:
        assert said in found


def test_a_made_up_cycle_is_caught(tmp_path):
    package = tmp_path / "pack"
    (package / "networks").mkdir(parents=True)
    lines = {"a": "from pack.networks import b", "b": "from .c import f", "c": "import pack.networks.a"}
    for name, line in lines.items():
        (package / "networks" / f"{name}.py").write_text(line)
    found = violations(package, ["networks"], LEAVES, ONLY_IN)
    assert found == ["cycle of networks.a -> networks.b -> networks.c -> networks.a"]


def test_no_module_loads_tensorflow_or_torch():
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print([name for name in ('tensorflow', 'torch') if name in sys.modules])"
    every = [f"biedsnet_jax.{name}" for name in modules(PACKAGE) if name]
    line = [sys.executable, "-c", code, *every]
    done = subprocess.run(line, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
