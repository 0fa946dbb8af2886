"""The error that the user can fix."""


class InputError(ValueError):
    """An input, option or file that the program cannot use.

    The message is one line: what was given, what is accepted, and what to do. `command_line.run` prints it without a
    traceback and exits with status 2. Any other exception is a defect of the program.
    """
