"""A backbone of your own: torchaudio's Wav2Vec 2.0, an encoder that is not in transformers.

Save pretrained weights to a file, once:

    python -c "import torch, torchaudio; torch.save(torchaudio.pipelines.WAV2VEC2_BASE.get_model().state_dict(), 'base.pt')"

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml --model.backbone examples.torchaudio_backbone.TorchaudioBackbone \\
        --model.backbone.init_args.source base.pt
    moelora-ad export --checkpoint runs/quickstart/version_0/checkpoints/last.ckpt --to model --allow examples
    moelora-ad score FILES --model model --allow examples
"""  # noqa: E501

import torch
import torchaudio
from torch import Tensor, nn

from moelora_ad.errors import InputError
from moelora_ad.models import Backbone, HiddenStates


class TorchaudioBackbone(Backbone):
    """``torchaudio.models.wav2vec2_model`` with the sizes of the base model (Baevski et al., arXiv 2006.11477).

    Args:
        source: file of its ``state_dict``; None for random weights.
        num_layers: transformer layers.
        width: features of a frame.
        num_heads: attention heads.
        hidden_states: "last", the number of a layer, or "weighted".

    Raises:
        InputError: the file does not contain the weights of such a model.
    """

    def __init__(
        self,
        source: str | None = None,
        num_layers: int = 12,
        width: int = 768,
        num_heads: int = 12,
        hidden_states: HiddenStates = "last",
    ) -> None:
        encoder = torchaudio.models.wav2vec2_model(
            extractor_mode="group_norm",
            extractor_conv_layer_config=None,
            extractor_conv_bias=False,
            encoder_embed_dim=width,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=128,
            encoder_pos_conv_groups=16,
            encoder_num_layers=num_layers,
            encoder_num_heads=num_heads,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=4 * width,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=False,
            encoder_layer_drop=0.0,
            aux_num_out=None,
        )
        if source is not None and torch.get_default_device().type != "meta":  # inspect builds without weights
            try:
                encoder.load_state_dict(torch.load(source, weights_only=True, map_location="cpu"))
            except (OSError, RuntimeError) as error:
                raise InputError(f"backbone {source}: {' '.join(str(error).split())}") from None
        super().__init__(encoder, width, hidden_states)

    def layers(self) -> nn.ModuleList:
        """The transformer layers; those above ``hidden_states`` are cut off by the base class."""
        return self.encoder.encoder.transformer.layers

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """Encode (B, samples) at 16 kHz as (B, frames, width). ``lengths`` is None, since rows come without padding."""
        return self.encoder(waveforms)[0]
