import common  # noqa: F401  # first: from then on, Ctrl-C ends a command in one line
