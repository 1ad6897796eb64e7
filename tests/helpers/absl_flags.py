"""Resets absl's flags, which otherwise last as long as the process."""

from absl import flags


def forget() -> None:
    """Brings absl's flags back to what they were before any parsing."""
    for name in list(flags.FLAGS):
        # config_flags defines a flag for each override that it sees.
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()
