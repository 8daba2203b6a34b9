"""The one exception class for things a user can put right."""


class InputError(ValueError):
    """What the user gave cannot be used: a file, an option, a prompt.

    The message is one line that names the file (or argument), the place in it and the remedy. Every command of the CLI
    prints it without a traceback and exits with code 2; library users catch it as a `ValueError`.
    """
