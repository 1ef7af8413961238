"""Objects that remember what they were built with."""

import inspect
from typing import Any, TypeVar

Made = TypeVar("Made", bound="RemembersArguments")


class _SignatureOfInit:
    """Descriptor that makes ``inspect.signature`` of a class use its ``__init__``, not the ``__new__`` below."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class RemembersArguments:
    """Base of all classes that a saved model builds again: every instance remembers the arguments of its constructor.

    (jsonargparse remembers what a parser was given, and Lightning what a module was given, but not what other Python
    code built; a dataclass is not a module. ``__new__`` sees the arguments of every subclass, whose ``__init__`` need
    not call anything.)

    Attributes:
        init_args: arguments by name, defaults included, as they were given, even if ``__init__`` stores something
            else. Copies and unpickled instances have those of the original.
    """

    __signature__ = _SignatureOfInit()
    init_args: dict[str, Any]

    def __new__(cls: type[Made], *args: Any, **kwargs: Any) -> Made:
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls).bind(*args, **kwargs)
        except TypeError:  # a copy is being made, without arguments; or __init__ is about to raise
            return made
        bound.apply_defaults()
        made.__dict__["init_args"] = dict(bound.arguments)  # modules refuse attributes before their own __init__
        return made
