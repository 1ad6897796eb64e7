"""Writes which device jax runs on, with its memory and the versions.

    python benchmarks/gpu/device.py --output=FILE.json

It is a process of its own: one that has a GPU open keeps most of its memory.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax

from benchmarks import scripts
from biedsnet_jax.benchmarking import benchmark
from biedsnet_jax.runtime import devices


def main() -> int:
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--output", required=True, help="json file")
    arguments = parser.parse_args()
    memory = jax.devices()[0].memory_stats() or {}
    found = {
        "device": benchmark.device(devices.make_mesh()),
        "memory_bytes": memory.get("bytes_limit"),
        "versions": benchmark.versions(),
    }
    scripts.show(found, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
