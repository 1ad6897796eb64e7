"""Folders that the tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
# It lies beside the project; tests that read it skip where it is missing.
SHARED = ROOT / ".." / "shared"
