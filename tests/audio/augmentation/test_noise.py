import pickle

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile

from moelora_ad.audio import AdditiveNoise, AudioError, RoomResponse, read_audio
from moelora_ad.errors import InputError


def generator(seed=0):
    return np.random.default_rng(seed)


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def write(path, sound, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype="FLOAT" if path.suffix.lower() == ".wav" else None)


@pytest.fixture
def noises(tmp_path):
    write(tmp_path / "street" / "a.wav", noise(50_000, 1))
    write(tmp_path / "b.flac", noise(9_000, 2))
    write(tmp_path / "street" / "C.WAV", noise(300, 3))
    (tmp_path / "README").write_text("no sound")
    return tmp_path


def energy(sound):
    return (sound.astype(np.float64) ** 2).sum()


# Noise


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5, 40.0])
@pytest.mark.parametrize("samples", [1, 500, 16_000, 70_000])
def test_the_ratio_is_that_of_the_energies(noises, snr, samples):
    waveform = noise(samples, 9)
    before = waveform.copy()
    result = AdditiveNoise(noises, (snr, snr))(waveform, generator(samples))
    added = result.astype(np.float64) - waveform
    assert result.dtype == np.float32
    assert 10 * np.log10(energy(waveform) / energy(added)) == pytest.approx(snr, abs=0.02)
    np.testing.assert_array_equal(waveform, before)


def test_ratios_are_drawn_uniformly(noises):
    waveform, add, one = noise(1_000, 9), AdditiveNoise(noises, (3, 18)), generator()
    ratios = [10 * np.log10(energy(waveform) / energy(add(waveform, one) - waveform)) for _ in range(300)]
    assert scipy.stats.kstest(ratios, scipy.stats.uniform(3, 15).cdf).pvalue > 0.01


def where(stretch, recording):
    """The place of ``stretch`` in the endlessly repeated ``recording``, and their correlation there."""
    repeated = np.tile(recording, -(-len(stretch) // len(recording)) + 1).astype(np.float64)
    correlation = scipy.signal.correlate(repeated, stretch, mode="valid", method="fft")
    place = int(correlation.argmax())
    return place, np.corrcoef(repeated[place : place + len(stretch)], stretch)[0, 1]


def test_any_file_at_any_place_is_added(noises):
    files = [noises / "b.flac", noises / "street" / "C.WAV", noises / "street" / "a.wav"]
    recordings = [read_audio(file) for file in files]
    add, waveform = AdditiveNoise(noises), noise(2_000, 9)
    assert add.files == files
    found = []
    for seed in range(30):
        added = (add(waveform, generator(seed)) - waveform).astype(np.float64)
        places = [where(added, recording) for recording in recordings]
        (index,) = [number for number, (_, alike) in enumerate(places) if alike > 0.999]
        found.append((index, places[index][0]))
    assert {index for index, _ in found} == {0, 1, 2}
    assert {place for index, place in found if index == 1} == {0}  # the short recording is repeated from its beginning
    assert len({place for index, place in found if index == 2}) > 3


def test_silent_waveforms_and_silent_noises_have_defined_results(tmp_path, noises):
    silent = np.zeros(1_000, np.float32)
    assert not AdditiveNoise(noises)(silent, generator()).any()
    write(tmp_path / "silence" / "a.wav", silent)
    waveform = noise(4_000)
    result = AdditiveNoise(tmp_path / "silence")(waveform, generator())
    np.testing.assert_array_equal(result, waveform)
    assert not np.shares_memory(result, waveform)


def test_any_signal_to_noise_ratio_beyond_100_dB_is_a_users_mistake():
    for limits in [(5, 0), (0, 101), (float("nan"), 3)]:
        with pytest.raises(InputError, match=r"^AdditiveNoise: snr_db must be"):
            AdditiveNoise("noises", limits)


# Rooms


def response(samples, delay, seed=0):
    tail = np.random.default_rng(seed).standard_normal(samples) * np.exp(-np.arange(samples) / (samples / 6))
    return np.concatenate([0.01 * tail[:delay], [1], 0.2 * tail]).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 900, 16_000])
@pytest.mark.parametrize(("length", "delay"), [(1, 0), (400, 37), (8_000, 160)])
def test_the_room_is_the_convolution_from_the_direct_path_on(tmp_path, samples, length, delay):
    room = response(length, min(delay, length))
    write(tmp_path / "room.wav", room)
    waveform = noise(samples, 5)
    truth = scipy.signal.fftconvolve(waveform.astype(np.float64), room)[room.argmax() :][:samples]
    truth *= np.sqrt(energy(waveform) / energy(truth))
    result = RoomResponse(tmp_path)(waveform, generator())
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, truth, atol=1e-5)
    assert energy(result) == pytest.approx(energy(waveform), rel=1e-5)


def test_a_room_without_walls_changes_nothing_whatever_its_delay_and_level(tmp_path):
    write(tmp_path / "room.wav", np.array([0, 0, 0, 0.25, 0, 0], np.float32))
    np.testing.assert_allclose(RoomResponse(tmp_path)(noise(3_000), generator()), noise(3_000), atol=1e-6)


def test_any_room_is_drawn(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.wav", response(300, 10, number))
    rooms = RoomResponse(tmp_path)
    assert len({rooms(noise(1_000), generator(seed)).tobytes() for seed in range(30)}) == 3


def test_silent_waveforms_and_silent_rooms_have_defined_results(tmp_path):
    write(tmp_path / "room.wav", response(300, 10))
    assert not RoomResponse(tmp_path)(np.zeros(1_000, np.float32), generator()).any()
    write(tmp_path / "room.wav", np.zeros(300, np.float32))
    result = RoomResponse(tmp_path)(noise(1_000), generator())
    np.testing.assert_array_equal(result, noise(1_000))


# Noise and rooms


@pytest.mark.parametrize("build", [AdditiveNoise, RoomResponse])
def test_a_generator_decides_everything_in_every_process(noises, build):
    fresh, used = build(noises), build(noises)
    waveform = noise(3_000, 9)
    first = used(waveform, generator(4))
    assert (first != used(waveform, generator(6))).any()
    for again in (fresh, used, pickle.loads(pickle.dumps(fresh)), pickle.loads(pickle.dumps(used))):
        np.testing.assert_array_equal(again(waveform, generator(4)), first)


@pytest.mark.parametrize("build", [AdditiveNoise, RoomResponse])
def test_the_folder_is_looked_at_on_first_use_only(noises, build):
    early = build(noises / "later")
    write(noises / "later" / "a.wav", noise(500))
    early(noise(100), generator())
    write(noises / "later" / "b.wav", noise(500, 7))
    assert [file.name for file in early.files] == ["a.wav"]


def test_recordings_that_cannot_be_listed_are_not_left_out(noises, shut):
    write(noises / "later" / "a.wav", noise(500))
    shut(noises / "later")
    with pytest.raises(AudioError, match="later: cannot be read: Permission denied"):
        AdditiveNoise(noises)(noise(100), generator())


def test_links_to_folders_are_followed_once(noises, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "musan").symlink_to(noises / "street")
    (folder / "again").symlink_to(noises / "street")
    (noises / "street" / "above").symlink_to(folder)
    assert AdditiveNoise(folder).files == [folder / "again" / "C.WAV", folder / "again" / "a.wav"]


@pytest.mark.parametrize("build", [AdditiveNoise, RoomResponse])
def test_a_folder_without_audio_is_one_line(tmp_path, build):
    for folder, named in [(tmp_path / "none", "no such folder"), (tmp_path, "no audio file in this folder")]:
        (tmp_path / "note.txt").write_text("no sound")
        with pytest.raises(AudioError, match=named) as error:
            build(folder)(noise(10), generator())
        assert str(error.value).startswith(str(folder))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("build", [AdditiveNoise, RoomResponse])
def test_a_damaged_recording_is_named(tmp_path, build):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        build(tmp_path)(noise(10), generator())
