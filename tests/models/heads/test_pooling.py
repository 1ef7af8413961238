"""Heads that pool statistics, against the formulas written out for each row."""

import numpy as np
import pytest
import torch

from moelora_ad.models import StatisticsPooling


def by_hand(features: np.ndarray, lengths: list[int], head: StatisticsPooling) -> np.ndarray:
    mean, variance = (getattr(head.norm, f"running_{name}").numpy() for name in ("mean", "var"))
    rows = []
    for row, count in zip(features, lengths, strict=True):
        statistics = np.concatenate([row[:count].mean(0), row[:count].std(0)])
        rows.append((statistics - mean) / np.sqrt(variance + head.norm.eps))
    return np.stack(rows) @ head.output.weight.detach().numpy().T + head.output.bias.detach().numpy()


@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 4, 1]])
def test_statistics_are_those_of_the_valid_frames(lengths):
    torch.manual_seed(1)
    head = StatisticsPooling(5)
    torch.nn.init.normal_(head.output.weight)
    torch.nn.init.normal_(head.output.bias)
    features = 3 * torch.randn(3, 9, 5) + 1
    for _ in range(20):
        head(features + torch.randn(3, 9, 5))  # standardisation learns its statistics from these batches
    found = head.eval()(features, None if lengths == [9, 9, 9] else torch.tensor(lengths)).detach().numpy()
    # A single frame has the deviation of the smallest variance, 1e-6.
    np.testing.assert_allclose(found, by_hand(features.numpy(), lengths, head), rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("lengths", [None, [9, 4, 1]])
def test_without_deviations_it_is_a_linear_layer_on_standardised_means(lengths):
    torch.manual_seed(1)
    head, features = StatisticsPooling(5, deviation=False), torch.randn(3, 9, 5)
    torch.nn.init.normal_(head.output.weight)
    head.norm.running_mean.normal_()
    found = head.eval()(features, None if lengths is None else torch.tensor(lengths)).detach().numpy()
    means = [row[:count].mean(0) for row, count in zip(features.numpy(), lengths or [9] * 3, strict=True)]
    standardised = (np.stack(means) - head.norm.running_mean.numpy()) / np.sqrt(1 + head.norm.eps)
    np.testing.assert_allclose(found, standardised @ head.output.weight.detach().numpy().T, atol=1e-5)


def test_training_begins_at_even_odds_and_learns_what_only_deviations_tell():
    torch.manual_seed(1)
    head = StatisticsPooling(4, dropout=0.0)
    labels = torch.arange(64) % 2
    features = torch.randn(64, 50, 4) * (1 + labels.view(-1, 1, 1)) + 100  # the means of both classes are the same
    assert head(features).abs().max() == 0
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert (head.eval()(features).argmax(1) == labels).all()


def test_with_running_statistics_training_standardises_as_evaluation_does():
    torch.manual_seed(1)
    head = StatisticsPooling(4, dropout=0.0, running=True)
    torch.nn.init.normal_(head.output.weight)
    for _ in range(3):
        features = 5 * torch.randn(6, 20, 4) + 3
        trained = head.train()(features)
        torch.testing.assert_close(head.eval()(features), trained, rtol=0, atol=0)
    assert head.norm.running_mean.abs().max() > 0.3


@pytest.mark.parametrize("running", [False, True])
def test_a_batch_of_one_utterance_is_normalised_by_the_running_statistics_and_moves_nothing(running):
    torch.manual_seed(1)
    head = StatisticsPooling(4, dropout=0.0, running=running)
    torch.nn.init.normal_(head.output.weight)
    head(5 * torch.randn(6, 20, 4) + 3)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    one = torch.randn(1, 20, 4)
    trained = head(one)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    torch.testing.assert_close(trained, head.eval()(one))


def test_dropout_is_of_training_alone():
    head = StatisticsPooling(4, dropout=0.9)
    torch.nn.init.ones_(head.output.weight)
    features = torch.randn(8, 20, 4)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))
