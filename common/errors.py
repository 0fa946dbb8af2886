"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something given to the program cannot be used.

    The message is one line: what was given, what is accepted, and the remedy. `command_line.run` prints it and ends
    with exit status 2; no traceback. Any other exception is a defect of the program.
    """
