"""Configuration files with a mistake: one line that names the file, and the line or the key."""

import re

import pytest

LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"model:\n\tlr: 1\n", "is not YAML: .*line 2, column 1"),
        (b"model: [1, 2\ndata: 3\n", "is not YAML: .*line 2, column 5"),
        (b"model: 'x\n", "is not YAML: .*line 1, column 8"),
        (b"1: a\n", "has the key 1, which is not text"),
        (b"model: {}\n1.5: a\n", "line 2: the key '1.5' is read as float: put it in quotes"),
        (b"model: {}\non: 1\n", "line 2: the key 'on' is read as bool: put it in quotes"),
        (b"model: \xff\n", "is not YAML: .*can't decode byte"),
        (b"", "is not a configuration, which has the keys model, data, trainer"),
        (b"- a\n", "is not a configuration"),
        (b"a: &a [*a]\n", "line 1: the alias a refers to nothing before it"),
        (b"trainer: {max_epoch: 3}\n", r"unknown key 'trainer\.max_epoch'; did you mean 'trainer\.max_epochs'\?"),
        (b"trainer: {max_epochs: abc}\n", r"trainer\.max_epochs: 'abc' is not one of: whole number, null"),
        (b"data: {batch_size: [1, 2]}\n", r"data\.batch_size: .*Got value: \[1, 2\]"),
        (
            b"model: {adaptation: {class_path: moelora_ad.adapters.MoELoRA, init_args: {rnk: 3}}}\n",
            r"model\.adaptation: moelora_ad\.adapters\.MoELoRA has no argument 'rnk'; did you mean 'rank'\?",
        ),
        (
            f"model: {{adaptation: {{class_path: MoELoRA, init_args: {{rank: {LONG}}}}}}}\n".encode(),
            r"rank: .*Got value: x{80}\.\.\.$",
        ),
    ],
)
def test_the_file_and_the_place(content, told, lightning, experiment, write_config, tmp_path):
    """The other configuration is correct: the error names the faulty one."""
    right = write_config(experiment)
    faulty = tmp_path / "a folder" / "faulty.yaml"
    faulty.parent.mkdir()
    faulty.write_bytes(content)
    for configs in ((right, faulty), (faulty, right)):
        code, out, err = lightning("fit", "--config", configs[0], "--config", configs[1])
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(right) not in err
        assert len(err) < 600
        assert re.search(f"error: {re.escape(str(faulty))}: .*{told}", err)


def test_a_class_over_classes_by_name_is_told_in_words(lightning, experiment, write_config):
    train = experiment["data"]["train"]
    experiment["data"]["train"] = {"a": train}
    faulty = {"class_path": train["class_path"], "init_args": {"pth": "x.csv"}}
    configs = write_config(experiment), write_config({"data": {"train": faulty}}, "faulty.yaml")
    code, _, err = lightning("fit", "--config", configs[0], "--config", configs[1])
    assert (code, err.count("\n")) == (2, 1)
    assert "data.train: what the configurations give together is not one of: Corpus, dict[str, Corpus], null" in err


def test_an_option_is_not_blamed_on_a_file(lightning, experiment, write_config):
    config = write_config(experiment)
    code, _, err = lightning("fit", "--config", config, "--trainer.max_epochs", "abc")
    assert (code, err.count("\n")) == (2, 1)
    assert "trainer.max_epochs" in err
    assert str(config) not in err
