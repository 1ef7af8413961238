"""Which attacks a sweep holds out in turn, if its file does not name them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from moelora_ad.errors import InputError
from moelora_ad.sweeps.sweep import Sweep


def attacks_of_training(sweep: Sweep, options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the attacks in the corpora that the sweep's common configuration trains on, sorted.

    Args:
        sweep: the sweep, whose common files describe the data.
        options: options of fit for every run, as texts.

    Raises:
        InputError: the data cannot be read, it names no attack, or the development set lacks one of the attacks, which
            could then not be tested.
    """
    # Imported here because it takes seconds, which a sweep that names its attacks does without.
    from moelora_ad.configuration.data import data_of
    from moelora_ad.configuration.trust import import_from_here

    import_from_here()
    of_data = {name: value for name, value in options.items() if name.startswith("data.")}
    try:
        with _environment(sweep.environment):
            data = data_of(sweep.configs, allow=None, options=of_data)
            data.read_trials("fit")
    except InputError as error:
        hint = "to plan without reading the data, name the attacks: leave_one_out: {attack: [A01, A02]}"
        raise InputError.at(sweep.path, f"leave_one_out: {error}; {hint}") from None
    assert data.train_trials is not None
    found = data.train_trials.attacks
    testable: set[str] = set().union(*(trials.attacks for trials in data.trials_by_set.values()))
    if not found:
        raise InputError.at(sweep.path, "leave_one_out: no spoof of data.train has an attack with a name")
    if missing := sorted(found - testable):
        told = "data.val, which must have them for the test, has no spoofs of"
        raise InputError.at(sweep.path, f"leave_one_out: {told} {', '.join(missing)}: name the others")
    return tuple(sorted(found))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables of the runs within the ``with`` block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
