"""The error that the user can fix."""


class InputError(ValueError):
    """An input, option or file that the program cannot use.

    The message is one line: what was given, what is accepted, and what to do. `command_line.run` prints it without a
    traceback and exits with status 2. Any other exception is a defect of the program.
    """


INSTALL_REST = 'install the rest in the project\'s folder: python -m pip install -e ".[all]"'
INSTALL_DISTRIBUTED = "run: python -m pip install -r requirements-distributed.txt"
_REST = ("fairlearn", "keras", "matplotlib", "optuna", "pandas", "scipy", "sklearn", "tensorflow", "yaml")


def missing_package(error: BaseException) -> str | None:
    """Return the message where a package is missing that only training and evaluation need; None for other errors."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in _REST:
        return f"this needs {name}, which is not installed; {INSTALL_REST}"
    if isinstance(error, ModuleNotFoundError) and name == "jax":
        return f"KERAS_BACKEND=jax needs JAX, which is not installed; {INSTALL_DISTRIBUTED}"
    return None
