"""An adaptation method without modules of its own: BitFit (Ben Zaken et al., arXiv 2106.10199) trains only the biases.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml --model.adaptation examples.bitfit.BitFit
    moelora-ad export --checkpoint runs/quickstart/version_0/checkpoints/last.ckpt --to model --allow examples
    moelora-ad score FILES --model model --allow examples
"""

from collections.abc import Iterable, Mapping

from torch import nn

from moelora_ad.adapters import AdaptationMethod


class BitFit(AdaptationMethod):
    """Train the encoder's biases; everything else of it is frozen."""

    def adapt(self, encoder: nn.Module) -> None:
        for name, parameter in encoder.named_parameters():  # what is already frozen stays frozen
            parameter.requires_grad_(parameter.requires_grad and name.endswith("bias"))

    def parts(self, encoder: nn.Module) -> Mapping[str, Iterable[nn.Parameter]]:
        return {"biases": [parameter for parameter in encoder.parameters() if parameter.requires_grad]}
