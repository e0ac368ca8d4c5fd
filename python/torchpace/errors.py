"""What may go wrong through the user's input, said in one line: expected, found, what to do.

Free of torch.
"""


class InputError(Exception):
    """Input that cannot be used: a settings line, a file, an option, a full disk."""


class Skipped(Exception):
    """A case that this machine cannot run, such as one for a device that it lacks.

    The message is the reason.
    """


class Note(UserWarning):
    """What a runtime says, by warnings.warn, of the artifact that it makes."""
