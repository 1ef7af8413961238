"""What ends a trainer's work from outside: signals, a lack of memory, lost processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import Terminated
from moelora_ad.training.lost_processes import lost_told
from moelora_ad.training.out_of_memory import memory_told


@contextmanager
def stops_told(trainer: Trainer, data: AudioDeepfakeDataModule) -> Iterator[None]:
    """What ends a trainer's work within the block, as the command line tells it.

    Raises:
        InputError: see `memory_told` and `lost_told`.
        KeyboardInterrupt: instead of Lightning's answers to Ctrl-C and, as `Terminated`, to SIGTERM, which are exits.
    """
    try:
        with memory_told(trainer, data), lost_told(trainer):
            yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as end:
        raise (end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else KeyboardInterrupt()) from None
