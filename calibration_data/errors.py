"""The one error of this package."""


class DataError(ValueError):
    """Samples that cannot be used; the message says what was found, where, and what to do next."""
