"""Two gloo processes that gather metrics; test_torchmetrics runs this file with the folder for the results."""

import json
import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from moelora_ad.evaluation import (
    ActualDetectionCost,
    AreaUnderCurve,
    AsvErrorRates,
    EqualErrorRate,
    LogLikelihoodRatioCost,
    MinDetectionCost,
    MinLogLikelihoodRatioCost,
    MinTandemDetectionCost,
    TrialScores,
)


def seven_trials():
    """Scores of which float32 would tie some, and labels; process 0 gets five trials and process 1 two."""
    scores = torch.tensor([0.3, 1.0, -2.0, 1.0 + 1e-12, 0.25, -0.5, 1.0 - 1e-12], dtype=torch.float64)
    return scores, torch.tensor([0, 1, 0, 1, 1, 0, 0])


def figures():
    """New metric objects, one for each figure."""
    return {
        "auc": AreaUnderCurve(),
        "min_dcf": MinDetectionCost(),
        "act_dcf": ActualDetectionCost(),
        "cllr": LogLikelihoodRatioCost(),
        "min_cllr": MinLogLikelihoodRatioCost(),
        "min_tdcf": MinTandemDetectionCost(AsvErrorRates(0.02, 0.03, 0.4)),
    }


def results(rank):
    scores, labels = seven_trials()
    mine = torch.tensor([[6, 0, 4, 2, 5], [3, 1]][rank])
    eer, trial_scores = EqualErrorRate(), TrialScores(num_trials=7)
    for batch in mine.split(2):
        eer.update(scores[batch], labels[batch])
        trial_scores.update(batch, scores[batch])
    found = {"uneven": summary(eer, trial_scores), "again": summary(eer, trial_scores)}

    eer, trial_scores = EqualErrorRate(), TrialScores(num_trials=7)
    if rank == 0:  # process 1 gets no trials
        eer.update(scores, labels)
        trial_scores.update(torch.arange(7), scores)
    found["one_empty"] = summary(eer, trial_scores)

    twice = TrialScores(num_trials=7, complete=False)
    twice.update(torch.tensor([rank, 4]), torch.zeros(2))
    try:
        twice.compute()
    except RuntimeError as error:
        found["twice"] = str(error)

    metrics = figures()
    for metric in metrics.values():
        metric.update(scores[mine], labels[mine])
    found["figures"] = {name: metric.compute().item() for name, metric in metrics.items()}

    part = TrialScores(num_trials=7, complete=False)
    part.update(torch.tensor([5 - rank]), torch.tensor([rank + 0.5]))
    found["part"] = [values.tolist() for values in part.compute()]
    return found


def summary(eer, trial_scores):
    indices, scores = trial_scores.compute()
    return {"eer": eer.compute().item(), "indices": indices.tolist(), "scores": scores.tolist()}


def run(rank, folder):
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=2, rank=rank)
    (folder / f"{rank}.json").write_text(json.dumps(results(rank)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Fork after the imports, which take most of the time, and before torch starts any thread.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank, Path(sys.argv[1]))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
