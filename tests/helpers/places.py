"""Where the tests find files: those of the project, and golden vectors."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
# Beside the project; tests that read it skip where it is not.
SHARED = ROOT / ".." / "shared"
