"""The errors that camtrain raises on purpose: the command line shows them as one sentence."""


class CamtrainError(Exception):
    """Something the caller can mend: what is wrong, what was expected, and the next step."""


class CamtrainValueError(CamtrainError, ValueError):
    """An argument has a value that cannot work."""


class CamtrainTypeError(CamtrainError, TypeError):
    """An argument has a type that cannot work."""


class CamtrainFileNotFoundError(CamtrainError, FileNotFoundError):
    """A path does not exist or holds nothing usable."""
