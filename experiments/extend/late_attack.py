"""Extension to each attack of MiniLA in turn: a base is trained without it, then extended with a few utterances of it.

    python experiments/extend/late_attack.py --to runs/late_attack
    python experiments/extend/late_attack.py --corpus $CORPORA --few 100 --replay 400 --test 400 --to runs/late_attack \
        --config experiments/mini/mini.yaml experiments/study/recipe.yaml experiments/extend/from_nothing.yaml

The corpus holds MiniLA and MiniOOD (default: the quickstart's small part of them). For each attack and seed, the script
trains a base on all other attacks with these configurations (default: the quickstart's), exports it, runs
`moelora-ad extend` with a few utterances of the attack, and saves all in ATTACK/seed_S; finished cases are skipped.
At the end, one table has the means over seeds and over attacks, and in how many cases the old sets stayed within their
intervals and the new attack's EER was at least halved.

The development speakers are split: those of one half select the base's checkpoint, the others are tested on. MiniLA's
evaluation part and MiniOOD have attacks of their own, on which neither the base nor its extension is trained; --test
takes this number of utterances of each of the two, the same ones in all cases.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import yaml

ATTACKS = [f"A{number:02}" for number in range(1, 7)]
HERE = Path(__file__).parent
_PROTOCOLS = {"train": "MiniLA.cm.train.trn", "dev": "MiniLA.cm.dev.trl", "eval": "MiniLA.cm.eval.trl"}
Rows = list[list[str]]  # speaker, utterance, -, attack, key


def main() -> None:
    given = arguments()
    results = {}
    for seed in range(1, given.seeds + 1):
        for attack in given.attacks:
            folder = given.to / attack / f"seed_{seed}"
            one(given, attack, seed, folder)
            results[attack, seed] = json.loads((folder / "report" / "extension.json").read_text())
            print(summary(results), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--corpus", type=Path, default=HERE.parent / "quickstart" / "corpus", metavar="ROOT")
    add("--attacks", nargs="+", default=ATTACKS, metavar="A")
    add("--seeds", type=int, default=5, metavar="N")
    add("--config", nargs="+", type=Path, default=[HERE.parent / "quickstart.yaml"], help="how the base is trained")
    add("--few", type=int, default=20, metavar="N", help="utterances of the new attack, and as many bona fide ones")
    add("--replay", type=int, default=0, metavar="N", help="old training utterances that are mixed in")
    add("--test", type=int, metavar="N", help="utterances of unknown_attacks and of out_of_domain (default: all)")
    add("--to", type=Path, required=True, metavar="DIR")
    add("extend", nargs="*", default=[], help="further arguments of moelora-ad extend, behind --")
    return parser.parse_args()


def one(given: argparse.Namespace, attack: str, seed: int, folder: Path) -> None:
    if (folder / "report" / "extension.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sets = split(given.corpus, attack, seed, given.few, given.replay, given.test)
    corpora = {name: written(rows, name, given.corpus, folder) for name, rows in sets.items()}
    base, extend = folder / "base.yaml", folder / "new_attack.yaml"
    base.write_text(yaml.safe_dump(base_configuration(seed, folder, corpora)))
    extend.write_text(yaml.safe_dump({"data": extension_data(corpora)}))
    configs = [word for config in (*given.config, base) for word in ("--config", config)]
    checkpoints = folder / "base" / "run" / "checkpoints"
    if not (folder / "model" / "config.json").is_file():
        program("fit", *configs, *resumed(checkpoints / "last.ckpt"))
        (best,) = (path for path in checkpoints.glob("epoch*.ckpt"))
        program("export", "--checkpoint", best, "--to", folder / "model")
    program(
        *("extend", folder / "model", "--data", extend, "--to", folder / "extended", "--seed", seed),
        *("--runs", folder / "runs", "--report", folder / "report", *given.extend),
    )


def split(corpus: Path, attack: str, seed: int, few: int, replay: int, test: int | None) -> dict[str, Rows]:
    rows = {name: read(corpus / "MiniLA" / "protocols" / f"{file}.txt") for name, file in _PROTOCOLS.items()}
    speakers = sorted({row[0] for row in rows["dev"]})
    halves = [[row for row in rows["dev"] if row[0] in speakers[half::2]] for half in (0, 1)]
    draw = random.Random(f"{attack} {seed}")
    old = [row for row in rows["train"] if row[3] != attack]
    bona_fide = [row for row in rows["train"] if row[4] == "bonafide"]
    late = [row for row in rows["train"] if row[3] == attack]
    sets = {
        "base_train": old,
        "base_val": [row for row in halves[0] if row[3] != attack],
        "new": draw.sample(late, min(few, len(late))) + draw.sample(bona_fide, min(few, len(bona_fide))),
        "val": halves[0],
        "new_attack": [row for row in halves[1] if row[3] == attack or row[4] == "bonafide"],
        "old_attacks": [row for row in halves[1] if row[3] != attack],
        "unknown_attacks": thinned(rows["eval"], test),
        "out_of_domain": thinned(read(corpus / "MiniOOD" / "protocols" / "MiniOOD.cm.eval.trl.txt"), test),
    }
    return sets | ({"replay": draw.sample(old, min(replay, len(old)))} if replay else {})


def thinned(rows: Rows, size: int | None) -> Rows:
    return rows if size is None or size >= len(rows) else random.Random(1).sample(rows, size)


def read(path: Path) -> Rows:
    return [line.split() for line in path.read_text().splitlines()]


def written(rows: Rows, name: str, root: Path, folder: Path) -> dict:
    """Write the protocol of these rows, and return the configuration of their corpus."""
    path = folder / "protocols" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    corpus = "MiniOOD" if name == "out_of_domain" else "MiniLA"
    arguments = {"name": corpus, "protocol": str(path), "audio": str(root / corpus / "flac")}
    return {"class_path": "moelora_ad.corpora.ASVspoof2019Protocol", "init_args": arguments}


def base_configuration(seed: int, folder: Path, corpora: dict) -> dict:
    logger = {"save_dir": str(folder), "name": "base", "version": "run"}
    return {
        "seed_everything": seed,
        "test_after_fit": False,
        "trainer": {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}},
        "data": {"train": corpora["base_train"], "val": corpora["base_val"]},
    }


def extension_data(corpora: dict) -> dict:
    tests = ("old_attacks", "unknown_attacks", "out_of_domain")
    train = {name: corpora[name] for name in ("new", "replay") if name in corpora}
    return {
        "train": train,
        "val": corpora["val"],
        "test": {"new": corpora["new_attack"]} | {name: corpora[name] for name in tests},
        "batch_size": 12,
        "eval_batch_size": 16,
    }


def resumed(last: Path) -> list[object]:
    return ["--ckpt_path", last] if last.is_file() else []


def program(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "moelora_ad", *map(str, words)], check=True)


def summary(results: dict[tuple[str, int], dict]) -> str:
    """A table of the new attack's EER in percent and the mean change of the old sets in percentage points: means and
    standard deviations over runs."""
    ways = list(dict.fromkeys(row["way"] for result in results.values() for row in result["changes"]))
    lines = [f"{'attack':8}{'trained':22}{'before':>12}{'after':>12}{'forgetting':>14}{'halved':>8}{'kept':>8}"]
    for attack in [*dict.fromkeys(attack for attack, _ in results), "all"]:
        for way in ways:
            rows = [
                [row for row in result["changes"] if row["way"] == way]
                for (one, _), result in results.items()
                if attack in (one, "all")
            ]
            if all(row["change"] is not None for of_run in rows for row in of_run):
                lines.append(f"{attack:8}{way:22}{_cells(rows)}")
    return "\n".join(lines)


def _cells(runs: list[list[dict]]) -> str:
    new = [row for rows in runs for row in rows if row["kind"] == "new"]
    old = [row for rows in runs for row in rows if row["kind"] == "old"]
    means = [row["change"] for rows in runs for row in rows if row["kind"] == "mean"]
    halved = sum(row["eer_after"] <= row["eer_before"] / 2 for row in new)
    kept = sum(row["low"] <= 0 for row in old)  # no rise of the EER is shown at 95 %
    figures = ([row["eer_before"] for row in new], [row["eer_after"] for row in new], means)
    before, after, forgetting = (_spread(values) for values in figures)
    return f"{before:>12}{after:>12}{forgetting:>14}{f'{halved}/{len(new)}':>8}{f'{kept}/{len(old)}':>8}"


def _spread(values: list[float]) -> str:
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * stdev(values):.1f}" if len(values) > 1 else text


if __name__ == "__main__":
    main()
