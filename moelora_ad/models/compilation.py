"""Regional compilation: the front end, each transformer layer and the classifier on its own, in place.

Layers of one kind share their compiled code, names in checkpoints do not change, and a part that cannot be compiled
runs eagerly. Random draws of compiled code (dropout, gate noise) are seeded too, but differ from those of eager code.

With CUDA graphs a layer or the classifier is queued as a whole, where a program may be slower at queuing operations
than a GPU is at them. The next step overwrites what such a part has returned, and its gradients.
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
FRONT_END, LAYERS, CLASSIFIER = "the front end", "the encoder's layers", "the classifier"


def eager_parts(
    detector: Detector, processes: int, *, sharded: bool, meta_learning: bool, auxiliary: bool, checkpointing: bool
) -> dict[str, str]:
    """The parts of a detector that cannot be compiled, and why.

    Args:
        detector: the detector to compile.
        processes: number of processes that train together.
        sharded: whether the strategy shards the detector's parameters.
        meta_learning: whether meta-learning replaces the detector's parameters.
        auxiliary: whether auxiliary losses watch the detector's gates in every step.
        checkpointing: whether layers run again in the backward pass.
    """
    parts = _parts(detector)
    if sharded:
        return dict.fromkeys(parts, "the strategy shards the parameters")
    if meta_learning:
        return dict.fromkeys(parts, "meta-learning replaces the parameters")
    reasons = {}
    if auxiliary:
        reasons[LAYERS] = "auxiliary losses watch the gates in every step"
    elif checkpointing:
        reasons[LAYERS] = "gradient checkpointing runs them again in the backward pass"
    if processes > 1:
        for part in (FRONT_END, CLASSIFIER):
            if any(isinstance(layer, BatchNorm) for module in parts.get(part, ()) for layer in module.modules()):
                reasons[part] = "its batch normalisation goes over all processes"
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
        for part, why in eager.items():
            tell(f"model.compile: {part} {'run' if part == LAYERS else 'runs'} eagerly: {why}")
        how = {"mode": GRAPHS} if self.graphs else {"backend": backend}
        self.modules: list[nn.Module] = []
        for part, modules in _parts(detector).items():
            if part in eager:
                continue
            for module in modules:
                # A front end is few operations, and long ones; it would need a graph for each length of clips.
                module.compile() if self.graphs and part == FRONT_END else module.compile(**how)
            self.modules += modules

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


def _parts(detector: Detector) -> dict[str, list[nn.Module]]:
    """The modules of each part of a detector that may be compiled."""
    front_end = detector.backbone.front_end_module()
    parts: dict[str, list[nn.Module]] = {} if front_end is None else {FRONT_END: [front_end]}
    return parts | {LAYERS: list(detector.backbone.layers()), CLASSIFIER: [detector.classifier]}
