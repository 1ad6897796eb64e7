"""Leaves a test without a home folder."""

import pwd


def leave_homeless(monkeypatch, temporary) -> None:
    """Takes away HOME and the user's entry in the password file.

    Temporary folders are made in `temporary`.
    """

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
