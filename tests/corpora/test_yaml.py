"""Every corpus class from a configuration, as YAML and as command-line options."""

import inspect

import jsonargparse
import pytest
import yaml

from moelora_ad import corpora
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.corpora import Corpus, ProtocolError, StorageError

ARGUMENTS = {
    "ADD": {"root": "data", "name": "ADD2022", "listing": "label/dev_label.txt", "audio": "dev"},
    "ASVspoof2019": {"root": "data", "split": "eval", "access": "PA"},
    "ASVspoof2019Protocol": {
        "name": "Mini",
        "protocol": "p.txt",
        "audio": "flac",
        "split": "dev",
        "extension": ".wav",
    },
    "ASVspoof2021DF": {"root": "data", "phase": "progress", "keys": "keys.txt"},
    "ASVspoof2021LA": {"root": "data", "phase": "hidden", "keys": "keys.tar.gz"},
    "ASVspoof5": {"root": "data", "split": "train"},
    "ASVspoofLaundered": {"root": "data", "split": "Noise_Addition"},
    "Codecfake": {"root": "data", "split": "A3"},
    "DFADD": {"root": "data", "split": "valid"},
    "DeepfakeEval2024": {"root": "data", "split": "train"},
    "FakeAVCeleb": {"root": "data", "trials": "a_vs_b"},
    "FakeOrReal": {"root": "data", "split": "testing"},
    "Folder": {"path": "data", "name": "Mine"},
    "HABLA": {"root": "data"},
    "InTheWild": {"root": "data"},
    "JSUT": {"root": "data"},
    "LJSpeech": {"root": "data"},
    "LibriSeVoc": {"root": "data"},
    "MLAAD": {"root": "data"},
    "Manifest": {"path": "m.csv", "name": "Mine", "root": "data", "split": "eval"},
    "SpoofCeleb": {"root": "data", "split": "development"},
    "WaveFake": {"root": "data", "ljspeech": "lj", "jsut": "jsut"},
}
EXPORTED = {name for name, value in vars(corpora).items() if inspect.isclass(value) and issubclass(value, Corpus)} - {
    "Corpus",
    "Few",  # this one and Joined are made of other corpora
    "Joined",
}


@pytest.fixture
def build():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--corpus", type=Corpus)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49

    def built(from_yaml=None, from_options=()):
        parsed = parser.parse_string(from_yaml) if from_yaml else parser.parse_args(list(from_options))
        return instantiate(parsed).corpus

    return built


def config(name, arguments):
    return yaml.safe_dump({"corpus": {"class_path": f"moelora_ad.corpora.{name}", "init_args": arguments}})


def options(name, arguments):
    yield f"--corpus=moelora_ad.corpora.{name}"
    yield from (f"--corpus.{key}={value}" for key, value in arguments.items())


def own_parameters(name):
    """The parameters of a class other than the selection, which every class takes."""
    *own, selection = inspect.signature(getattr(corpora, name)).parameters.values()
    assert selection.kind is selection.VAR_KEYWORD
    return own


def test_no_class_and_no_option_is_left_out():
    assert ARGUMENTS.keys() == EXPORTED
    for name, arguments in ARGUMENTS.items():
        assert [*arguments] == [parameter.name for parameter in own_parameters(name)], name


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("form", ["yaml", "options"])
def test_every_class_is_built_without_its_files(tmp_path, monkeypatch, build, name, form):
    monkeypatch.chdir(tmp_path)
    arguments = ARGUMENTS[name]
    corpus = build(config(name, arguments)) if form == "yaml" else build(from_options=options(name, arguments))
    assert type(corpus) is getattr(corpora, name)
    direct = type(corpus)(**arguments)
    assert {key: str(value) for key, value in vars(corpus).items()} == {
        key: str(value) for key, value in vars(direct).items()
    }
    assert corpus.name == direct.name
    with pytest.raises((ProtocolError, StorageError)) as error:
        corpus.trials()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_class_is_built_with_what_it_needs_alone(build, name):
    needed = [parameter.name for parameter in own_parameters(name) if parameter.default is parameter.empty]
    corpus = build(config(name, {key: ARGUMENTS[name][key] for key in needed}))
    assert type(corpus) is getattr(corpora, name)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("form", ["yaml", "options"])
def test_every_class_takes_a_selection_beside_its_own_arguments(build, name, form):
    arguments = ARGUMENTS[name] | {"attacks": ["A01", "A02"], "exclude_speakers": ["007"]}
    corpus = build(config(name, arguments)) if form == "yaml" else build(from_options=options(name, arguments))
    assert corpus.selection == {"attacks": ("A01", "A02"), "exclude_speakers": ("007",)}
    assert build(config(name, ARGUMENTS[name])).selection == {}


def test_a_selection_that_is_not_given_is_not_in_a_configuration():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--corpus", type=Corpus)
    given = ARGUMENTS["Manifest"] | {"codecs": ["opus"]}
    dumped = yaml.safe_load(parser.dump(parser.parse_string(config("Manifest", given))))
    assert dumped["corpus"]["init_args"] == given


WRONG = [
    ("ASVspoof2019", {"split": "test"}),
    ("ASVspoof2019", {"access": "DF"}),
    ("ASVspoof2021LA", {"phase": "hidden_track"}),
    ("ASVspoof2021DF", {"phase": "dev"}),
    ("ASVspoof5", {"split": "development"}),
    ("ASVspoofLaundered", {"split": "Noise"}),
    ("Codecfake", {"split": "C8"}),
    ("DFADD", {"split": "eval"}),
    ("DeepfakeEval2024", {"split": "Train"}),
    ("FakeAVCeleb", {"trials": "a_vs_c"}),
    ("FakeOrReal", {"split": "train"}),
    ("SpoofCeleb", {"split": "eval"}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
@pytest.mark.parametrize("form", ["yaml", "options"])
def test_a_wrong_word_is_one_line_that_has_the_right_ones(capsys, name, wrong, form):
    parser = OneLineParser(prog="lightning fit")
    parser.add_argument("--corpus", type=Corpus)
    arguments = ARGUMENTS[name] | wrong
    given = config(name, arguments) if form == "yaml" else list(options(name, arguments))
    with pytest.raises(SystemExit) as ended:
        parser.parse_string(given) if form == "yaml" else parser.parse_args(given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    ((key, word),) = wrong.items()
    assert line.startswith("lightning fit: error: ")
    assert all(text in line for text in (key, word, str(ARGUMENTS[name][key])))
