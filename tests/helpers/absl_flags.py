"""absl keeps flags for the life of a process; a test wants them as they were."""

from absl import flags


def forget() -> None:
    """As before any parsing."""
    for name in list(flags.FLAGS):
        # config_flags defines one for each override that it sees
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()
