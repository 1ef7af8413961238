"""Regional compilation: each transformer layer and the classifier on its own, in place.

Layers of one kind share their compiled code, names in checkpoints do not change, and a part that cannot be compiled
runs eagerly. Random draws of compiled code (dropout, gate noise) are seeded too, but differ from those of eager code.

With CUDA graphs a part is queued as a whole, where a program may be slower at queuing operations than a GPU is at them.
The next step overwrites what a part has returned, and its gradients.
"""

import difflib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.compiler import list_backends

from moelora_ad.errors import InputError
from moelora_ad.models.detector import Detector
from moelora_ad.torch_internals import BatchNorm, CompilerError, forget_compilation

GRAPHS = "reduce-overhead"
"""The mode of ``torch.compile`` with CUDA graphs."""
LAYERS, CLASSIFIER = "the encoder's layers", "the classifier"


def eager_parts(
    detector: Detector, processes: int, *, sharded: bool, meta_learning: bool, auxiliary: bool, checkpointing: bool
) -> dict[str, str]:
    """The parts that cannot be compiled, and why.

    Args:
        detector: the detector to compile.
        processes: number of processes that train together.
        sharded: whether the strategy shards the detector's parameters.
        meta_learning: whether meta-learning replaces the detector's parameters.
        auxiliary: whether auxiliary losses watch the detector's gates in every step.
        checkpointing: whether layers run again in the backward pass.
    """
    if sharded:
        return dict.fromkeys((LAYERS, CLASSIFIER), "the strategy shards the parameters")
    if meta_learning:
        return dict.fromkeys((LAYERS, CLASSIFIER), "meta-learning replaces their parameters")
    reasons = {}
    if auxiliary:
        reasons[LAYERS] = "auxiliary losses watch the gates in every step"
    elif checkpointing:
        reasons[LAYERS] = "gradient checkpointing runs them again in the backward pass"
    if processes > 1 and any(isinstance(part, BatchNorm) for part in detector.classifier.modules()):
        reasons[CLASSIFIER] = "its batch normalisation goes over all processes"
    return reasons


class CompiledDetector:
    """A detector whose parts are compiled when they first run.

    Args:
        detector: changed in place.
        backend: backend of ``torch.compile``, or its mode `GRAPHS`.
        eager: parts that are not compiled, and why.
        tell: called with a line for each part that is not compiled, and with one if the compiler fails.

    Raises:
        InputError: there is no such backend.
    """

    def __init__(
        self, detector: Detector, backend: str, eager: Mapping[str, str], tell: Callable[[str], object]
    ) -> None:
        known = [*list_backends(exclude_tags=()), GRAPHS]
        if backend not in known:
            near = difflib.get_close_matches(backend, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"model.compile: torch.compile has no backend {backend!r}; {hint}")
        self.detector = detector
        self.graphs = backend == GRAPHS
        self.tell = tell
        parts: dict[str, list[nn.Module]] = {
            LAYERS: list(detector.backbone.layers()),
            CLASSIFIER: [detector.classifier],
        }
        for part, why in eager.items():
            tell(f"model.compile: {part} {'run' if part == LAYERS else 'runs'} eagerly: {why}")
        self.modules = [module for part, modules in parts.items() if part not in eager for module in modules]
        for module in self.modules:
            module.compile(mode=backend) if self.graphs else module.compile(backend=backend)

    def __call__(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the detector; the first failure of the compiler makes all of it run eagerly."""
        try:
            if not self.graphs:
                return self.detector(waveforms, lengths)
            torch.compiler.cudagraph_mark_step_begin()
            return self.detector(waveforms, lengths).clone()
        except CompilerError as error:
            if not self.modules:
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.tell(f"model.compile: everything runs eagerly, because the compiler failed: {' '.join(lines[:2])}")
            self.undo()
            return self.detector(waveforms, lengths)

    def undo(self) -> None:
        """Make the detector run eagerly again."""
        for module in self.modules:
            forget_compilation(module)
        self.modules = []
