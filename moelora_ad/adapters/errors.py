"""What a user of the adapters can do wrong."""


class AdapterError(ValueError):
    """The adapters and what they were asked for do not fit; ``str()`` is one line: what is wrong, where, what to do."""


class InjectionError(AdapterError):
    """The adapter does not fit the model; the message names the sites or the patterns."""
