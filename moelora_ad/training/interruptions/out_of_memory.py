"""How a run reports a lack of memory, shared memory or open files."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.workers import end_of_workers_awaited, starved
from moelora_ad.errors import InputError
from moelora_ad.models.devices import is_out_of_memory
from moelora_ad.training.checkpoint_writing import where_to_continue


@contextmanager
def explain_out_of_memory(trainer: Trainer, data: AudioDeepfakeDataModule) -> Iterator[None]:
    """Turn a lack of memory or open files within the block into an `InputError` that says what to change.

    Raises:
        InputError: instead of PyTorch's error or Python's.
    """
    try:
        with end_of_workers_awaited():
            yield
    except (MemoryError, OSError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if (told := starved(error, data.num_workers)) is not None:
            raise InputError(told + where_to_continue(trainer)) from None
        if isinstance(error, OSError):
            raise
        if not is_out_of_memory(error):
            raise
        raise InputError(_advice(trainer, data) + where_to_continue(trainer)) from None


def _advice(trainer: Trainer, data: AudioDeepfakeDataModule) -> str:
    # Lightning has reset its own stage by now.
    if not trainer.lightning_module.training:
        return f"out of memory in evaluation with data.eval_batch_size {data.eval_batch_size}: lower it"
    samples = data.train_segment.samples
    segments = f" segments of {samples:,} samples" if samples else " whole utterances"
    remedies = [f"lower data.batch_size (trainer.accumulate_grad_batches keeps {data.batch_size} for each step)"]
    if not getattr(trainer.lightning_module, "gradient_checkpointing", True):
        remedies.append("set model.gradient_checkpointing true")
    if str(trainer.precision).startswith("32"):
        remedies.append("set trainer.precision bf16-mixed or bf16-true")
    return (
        f"out of memory in step {trainer.global_step} with a data.batch_size of {data.batch_size}{segments}: "
        f"{', or '.join(remedies)}"
    )
