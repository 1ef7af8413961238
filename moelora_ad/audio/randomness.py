"""Random numbers that depend on what they are drawn for, never on the process that draws them or when."""

import hashlib

import numpy as np


def keyed_generator(seed: int, epoch: int, utterance: str) -> np.random.Generator:
    """The random generator of one utterance in one epoch of one run.

    The same three values give the same stream on every platform, in every process and after every restart, so the
    number of workers changes nothing; different values give independent streams.
    """
    key = hashlib.blake2b(f"{seed}\0{epoch}\0{utterance}".encode(), digest_size=16).digest()
    # PCG64 by name: numpy may change what `default_rng` stands for.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))))
