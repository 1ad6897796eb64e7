"""Files that a reader, or a kill, never sees half written."""

import errno
import json
import math
import os
import pathlib
from typing import Any


def user_cache() -> pathlib.Path:
    """Where this package may keep what it can make again."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "biedsnet_jax"


def write_text(path: pathlib.Path, text: str) -> None:
    """Write to a temporary name, then rename over `path`."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """The same, of bytes."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write strict JSON: a NaN is an error here rather than in whoever reads it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_json_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append one line in one write; a number that is not finite becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    append_text(path, json.dumps(finite) + "\n")


def append_text(path: pathlib.Path, text: str) -> None:
    """Append in one write. A disk that fills up in the middle of it raises OSError and leaves the file as it was."""
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        if os.write(descriptor, data) < len(data):  # the next line would go on in the middle of this one
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def identity(folder: pathlib.Path) -> int | None:
    """The same as long as a folder is the same; None where it is gone."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


_FULL = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk or a quota is full; libraries give that as text."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL.values()):
            return True
        error = error.__cause__ or error.__context__
    return False
