"""The interface of every corpus."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

from typing_extensions import Unpack

from moelora_ad.corpora.selection import Selection, SelectionArguments, checked, in_words, kept, part_of
from moelora_ad.corpora.trial import TrialList
from moelora_ad.errors import InputError

_SELECTS = "_takes_selection"  # marks functions that apply the selection


class ClassCounts(NamedTuple):
    """How many trials a corpus has; None where it is not known."""

    total: int | None
    bona_fide: int | None = None
    spoof: int | None = None


class LeftOut(NamedTuple):
    """How many trials of a corpus are not taken; those whose label is not known count only in ``total``."""

    total: int = 0
    bona_fide: int = 0
    spoof: int = 0

    def and_of(self, all_trials: TrialList, part: TrialList) -> "LeftOut":
        """These and the trials of a list that are not in a part of it."""
        return LeftOut(
            self.total + len(all_trials) - len(part),
            self.bona_fide + all_trials.num_bona_fide - part.num_bona_fide,
            self.spoof + all_trials.num_spoof - part.num_spoof,
        )


class Corpus(ABC):
    """A set of trials under one name.

    To add a corpus, write a class with ``name`` and `trials` and give its ``class_path`` in YAML. The constructor only
    stores its arguments; files are read by `trials`, so that a configuration can be built and printed anywhere.

    Every class takes the arguments of `SelectionArguments` besides its own, such as ``exclude_attacks=["A04"]``, and
    nothing needs to be written for it: what `trials` returns is filtered by them. An argument of the class's own with
    one of these names stays its own; a constructor with ``**options`` gets them among these, too. (A ``dataclass`` does
    not take them, as it gets its constructor too late.)
    """

    name: str
    """The corpus's name in reports."""
    selection: Selection = MappingProxyType({})
    """The selection of trials that the corpus is limited to."""
    selection_note: str = ""
    """The selection in words; empty if all trials are taken."""
    left_out: LeftOut | None = None
    """How many trials the last call of `trials` has left out; None if all were taken."""

    def __init__(self, **selection: Unpack[SelectionArguments]) -> None:
        self.selection = checked(selection)
        self.selection_note = in_words(self.selection)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # The constructor and trials may be defined in any base class, such as a mixin; each is wrapped only once.
        if cls.__init__ is not Corpus.__init__ and not hasattr(cls.__init__, _SELECTS):
            cls.__init__ = _taking_selection(cls.__init__)  # type: ignore[method-assign]
        if not hasattr(cls.trials, _SELECTS):
            cls.trials = _selecting(cls.trials)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def trials(self) -> TrialList:
        """Parse the protocol. Audio files are not looked at: one that is missing is reported when it is read.

        Raises:
            ProtocolError: The protocol is faulty.
            StorageError: A file or folder is missing.
            InputError: The selection names what the corpus does not have, or leaves no trial.
        """

    def official_counts(self) -> ClassCounts | None:
        """The publishers' numbers for the configured part, for `check_corpus`; None if nothing is known. They are those
        of the whole part, whatever the selection."""
        return None


def _taking_selection(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes the arguments of `SelectionArguments` too; parsers find them in its signature."""
    signature = inspect.signature(init)
    own = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        return _with_what_it_keeps(init)
    kinds = {name: kind for name, kind in SelectionArguments.__annotations__.items() if name not in own}
    arguments = TypedDict("arguments", kinds, total=False)  # type: ignore[misc]
    arguments.__doc__ = SelectionArguments.__doc__

    @functools.wraps(init)
    def with_selection(self: Corpus, *args: Any, **given: Any) -> None:
        selection = {name: given.pop(name) for name in kinds if name in given}
        init(self, *args, **given)
        if selection:
            Corpus.__init__(self, **{**self.selection, **selection})

    rest = inspect.Parameter("selection", inspect.Parameter.VAR_KEYWORD, annotation=Unpack[arguments])
    with_selection.__signature__ = signature.replace(parameters=[*own.values(), rest])  # type: ignore[attr-defined]
    setattr(with_selection, _SELECTS, True)
    with_selection.__annotations__ = {**init.__annotations__, "selection": Unpack[arguments]}
    return with_selection


def _with_what_it_keeps(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes any argument, and may not hand those of the selection on to `Corpus`."""

    @functools.wraps(init)
    def with_selection(self: Corpus, *args: Any, **given: Any) -> None:
        init(self, *args, **given)
        inits = [inspect.unwrap(vars(base)["__init__"]) for base in type(self).__mro__ if "__init__" in vars(base)]
        own = {name for one in inits for name in inspect.signature(one).parameters}
        left = SelectionArguments.__annotations__.keys() & given.keys() - own - self.selection.keys()
        if left:
            Corpus.__init__(self, **{**self.selection, **{name: given[name] for name in left}})

    setattr(with_selection, _SELECTS, True)
    return with_selection


def _selecting(trials: Callable[[Corpus], TrialList]) -> Callable[[Corpus], TrialList]:
    """The method `trials` of a class, limited to the selection, unless that of a subclass calls it."""

    @functools.wraps(trials)
    def selected(self: Corpus) -> TrialList:
        found = trials(self)
        if not isinstance(found, TrialList):
            raise InputError(f"{type(self).__name__}.trials gives a {type(found).__name__}, not a TrialList")
        if not self.selection or type(self).trials is not selected:
            return found
        name = f"{self.name} {getattr(self, 'split', None) or ''}".strip()
        part = part_of(found, kept(found, self.selection, name))
        self.left_out = LeftOut().and_of(found, part)
        return part

    setattr(selected, _SELECTS, True)
    return selected
