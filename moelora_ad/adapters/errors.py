"""Errors that the adapters raise."""

_LONGEST = 2_000  # characters


class AdapterError(ValueError):
    """The adapters do not fit what was requested; ``str()`` is one line: what is wrong, where, what to do."""

    def __init__(self, message: str) -> None:
        # A message may quote a faulty file, whose text may be long or contain control characters.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        half = _LONGEST // 2 - 5
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} [...] {line[-half:]}")


class InjectionError(AdapterError):
    """The adapter does not fit the model; the message names the sites or the patterns."""
