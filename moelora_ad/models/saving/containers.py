"""The zip files that PyTorch writes tensors to."""

import zlib
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from moelora_ad.runs.checkpoints import CheckpointError


def check_container(path: str, option: str) -> None:
    """Check that each part of a checkpoint matches the checksum that it was written with; PyTorch does not.

    Args:
        path: path of the file.
        option: the option that gave the path, for messages.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with ZipFile(path) as container:
            if any(part.compress_type != ZIP_STORED for part in container.infolist()):
                raise BadZipFile("it has compressed parts, which PyTorch never writes")
            damaged = container.testzip()
    except (OSError, RuntimeError, EOFError, ValueError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{option}: {path} is not a readable checkpoint: {reason}") from None
    if damaged is not None:
        raise CheckpointError(f"{option}: {path} is damaged: {damaged} does not match its checksum")
