"""The graph layers of AASIST (Jung et al., arXiv 2110.01200, section 2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def _attention_vector(width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(width, 1)))


class _NodeNorm(nn.BatchNorm1d):
    """Batch normalisation of node features (B, N, D) over both batch and nodes."""

    def forward(self, nodes: Tensor) -> Tensor:
        return super().forward(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])


class GraphAttention(nn.Module):
    """Graph attention over a complete graph (eq. 2 to 4).

    Args:
        in_features, out_features: width of a node before and after.
        temperature: divides the attention logits.

    Shapes: nodes (B, N, in_features) -> (B, N, out_features).
    """

    def __init__(self, in_features: int, out_features: int, temperature: float) -> None:
        super().__init__()
        self.pair = nn.Linear(in_features, out_features)
        self.pair_weight = _attention_vector(out_features)
        self.attended = nn.Linear(in_features, out_features)
        self.direct = nn.Linear(in_features, out_features)
        self.norm = _NodeNorm(out_features)
        self.dropout = nn.Dropout(0.2)
        self.temperature = temperature

    def forward(self, nodes: Tensor) -> Tensor:
        nodes = self.dropout(nodes)
        pairs = torch.tanh(self.pair(nodes.unsqueeze(2) * nodes.unsqueeze(1)))  # (B, N, N, out)
        attention = torch.softmax((pairs @ self.pair_weight).squeeze(-1) / self.temperature, dim=-1)
        return functional.selu(self.norm(self.attended(attention @ nodes) + self.direct(nodes)))


class HeterogeneousGraphAttention(nn.Module):
    """Attention over the joined temporal and spectral nodes, with a master node that gathers both (section 2.2).

    Shapes: temporal (B, N_T, in_features), spectral (B, N_S, in_features), master (B, 1, in_features) -> the same three
    with out_features.
    """

    def __init__(self, in_features: int, out_features: int, temperature: float) -> None:
        super().__init__()
        self.project_temporal = nn.Linear(in_features, in_features)
        self.project_spectral = nn.Linear(in_features, in_features)
        self.pair = nn.Linear(in_features, out_features)
        self.weight_temporal = _attention_vector(out_features)
        self.weight_spectral = _attention_vector(out_features)
        self.weight_across = _attention_vector(out_features)
        self.master_pair = nn.Linear(in_features, out_features)
        self.master_weight = _attention_vector(out_features)
        self.attended = nn.Linear(in_features, out_features)
        self.direct = nn.Linear(in_features, out_features)
        self.master_attended = nn.Linear(in_features, out_features)
        self.master_direct = nn.Linear(in_features, out_features)
        self.norm = _NodeNorm(out_features)
        self.dropout = nn.Dropout(0.2)
        self.temperature = temperature

    def forward(self, temporal: Tensor, spectral: Tensor, master: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = temporal.shape[1]
        nodes = torch.cat([self.project_temporal(temporal), self.project_spectral(spectral)], dim=1)
        nodes = self.dropout(nodes)
        attention = torch.softmax(self._logits(nodes, count) / self.temperature, dim=-1)
        master = self._update_master(nodes, master)
        nodes = functional.selu(self.norm(self.attended(attention @ nodes) + self.direct(nodes)))
        return nodes[:, :count], nodes[:, count:], master

    def _logits(self, nodes: Tensor, count: int) -> Tensor:
        """Attention logits (B, N, N), with a weight vector for pairs within each node type and one across the two."""
        pairs = torch.tanh(self.pair(nodes.unsqueeze(2) * nodes.unsqueeze(1)))  # (B, N, N, out)
        inside_temporal = (pairs[:, :count, :count] @ self.weight_temporal).squeeze(-1)
        inside_spectral = (pairs[:, count:, count:] @ self.weight_spectral).squeeze(-1)
        # The pair products are symmetric, so both directions across share one block.
        across = (pairs[:, :count, count:] @ self.weight_across).squeeze(-1)
        above = torch.cat([inside_temporal, across], dim=2)
        below = torch.cat([across.transpose(1, 2), inside_spectral], dim=2)
        return torch.cat([above, below], dim=1)

    def _update_master(self, nodes: Tensor, master: Tensor) -> Tensor:
        logits = torch.tanh(self.master_pair(nodes * master)) @ self.master_weight  # (B, N, 1)
        attention = torch.softmax(logits / self.temperature, dim=1)
        return self.master_attended(attention.transpose(1, 2) @ nodes) + self.master_direct(master)


class GraphPooling(nn.Module):
    """Keeps some of the nodes, those with the highest learned score, each scaled by its score (Gao and Ji 2019).

    Args:
        features: features of a node.
        ratio: part of the nodes that is kept.

    Shapes: nodes (B, N, D) -> (B, max(int(N * ratio), 1), D), highest score first.
    """

    def __init__(self, features: int, ratio: float = 0.5) -> None:
        super().__init__()
        self.ratio = ratio
        self.score = nn.Linear(features, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, nodes: Tensor) -> Tensor:
        scores = torch.sigmoid(self.score(self.dropout(nodes)))  # (B, N, 1)
        # Integer division where it is enough: an exported graph can compute it for clips of any length.
        count = nodes.shape[1] // 2 if self.ratio == 0.5 else int(nodes.shape[1] * self.ratio)
        kept = scores.topk(max(count, 1), dim=1).indices
        return (nodes * scores).gather(1, kept.expand(-1, -1, nodes.shape[2]))
