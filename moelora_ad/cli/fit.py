"""The commands fit, validate, test and predict, and their short help."""

from collections.abc import Sequence

from moelora_ad.cli.imports import at_once

_CONFIG = {"--config FILE": "a configuration, or the name of a packaged one; later ones change earlier ones"}
_MACHINE = {
    "--data.num_workers N": "processes that read audio, for each training process (default: 0)",
    "--trainer.accelerator NAME": "cpu, gpu, ... (default: a GPU if there is one)",
    "--trainer.devices N": "how many of them (default: 1)",
    "--trainer.precision NAME": "32-true, bf16-mixed, 16-mixed or bf16-true (default: 32-true)",
}
_TRAINING = {
    "--seed_everything N": "fixes weights, order of trials and every random draw (default: 1)",
    "--ckpt_path PATH": "resume an interrupted run: a checkpoint, or last with RUN/config.yaml",
    "--model.adaptation CLASS": "MoELoRA, LoRA, ...; then --model.adaptation.init_args.rank N and the like",
    "--data.batch_size N": "training utterances at once, for each process (default: 14)",
    "--trainer.max_epochs N": "how long to train; it may stop earlier",
}
_JUDGING = {
    "--ckpt_path PATH": "a checkpoint; best or last of the run of --config RUN/config.yaml; the folder of a model",
    "--untrained BOOL": "judge the model without a checkpoint",
    "--score_folder DIR": "where score files go (default: RUN/scores/CHECKPOINT)",
    "--data.eval_batch_size N": "utterances at once (default: data.batch_size)",
    "--trainer.strategy NAME": "ddp, fsdp, ... for several devices",
}
# command -> what it does, and the ten options that people use first
FIRST = {
    "fit": ("Train a detector, select it on the development set and test the best checkpoint.", _TRAINING),
    "validate": ("EER and scores of a checkpoint on the development set.", _JUDGING),
    "test": ("EER and scores of a checkpoint on every test set.", _JUDGING),
    "predict": ("Scores alone, for test sets without labels.", _JUDGING),
}


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command ``argv[0]`` with its arguments ``argv[1:]``; returns the exit code."""
    arguments = list(argv)
    asked = next((at for at, word in enumerate(arguments) if word in ("-h", "--help")), None)
    if asked is not None:
        if arguments[asked + 1 :] != ["all"]:
            print(_help(argv[0], program))
            return 0
        arguments.pop()
    with at_once():
        from moelora_ad.cli.lightning_cli.detection_command import run_command

    return run_command(arguments, program)


def _help(verb: str, program: str) -> str:
    what, own = FIRST[verb]
    listed = "\n".join(f"  {option:28} {told}" for option, told in (_CONFIG | own | _MACHINE).items())
    name = f"{program} {verb}"
    return f"""usage: {name} --config FILE [--config FILE ...] [options]

{what}

the options that people use first:
{listed}

{name} --help all                        every option
{name} --model.adaptation.help LoRA      the options of a class; so for all that take a CLASS
{name} --config FILE --print_config      the whole configuration, with what is not given"""
