"""Tests where compiled programs are kept, each in a process of its own, since jax takes
the folder of its first kept program for all.
"""

import os
import subprocess
import sys

import pytest
from places import ROOT

ENABLE = """
import sys, jax, jax.numpy as jnp
from biedsnet_jax.runtime import devices
"""
COMPILE_FIRST = "jax.jit(lambda x: x + 1)(jnp.ones(3))\n"
COMPILE = """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(5))
"""


def run(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", ENABLE + code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("before", ["", COMPILE_FIRST], ids=["first", "later"])
def test_programs_are_kept_also_where_some_were_compiled_before(tmp_path, before):
    run(before + "devices.enable_compile_cache(sys.argv[1])\n" + COMPILE, tmp_path)
    assert any(tmp_path.iterdir())


def test_the_folder_auto_is_the_users(tmp_path):
    code = "devices.enable_compile_cache('auto')\n" + COMPILE
    run(code, XDG_CACHE_HOME=str(tmp_path))
    assert any((tmp_path / "biedsnet_jax" / "xla").iterdir())


def test_auto_leaves_the_folder_that_jax_has(tmp_path):
    code = "devices.enable_compile_cache('auto')\n" + COMPILE
    own = str(tmp_path / "own")
    run(code, XDG_CACHE_HOME=str(tmp_path / "users"), JAX_COMPILATION_CACHE_DIR=own)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path):
    blocked = tmp_path / "file" / "xla"
    blocked.parent.write_text("in the way")
    twice = "devices.enable_compile_cache(sys.argv[1])\n" * 2 + COMPILE
    said = run(twice, blocked)
    assert said.count(str(blocked)) == 1
    assert "compile_cache" in said
