"""A task: model and tokenizer belong together, and a run folder holds both or says what is wrong with it."""

import errno
import json
import os
import shutil
import zipfile

import keras
import pytest
from helpers import randomize
from small_disk import small_disk

from keras_seqlm.files import read_json, write_json
from keras_seqlm.models import RecurrentLM
from keras_seqlm.tasks import Task, TextGeneration, load
from keras_seqlm.tokenizers import ByteTokenizer, CharacterTokenizer

pytestmark = pytest.mark.neutral


def small_model(vocabulary_size=260, **options):
    model = RecurrentLM(vocabulary_size, cell="gru", size="nano", hidden_dim=16, **options)
    model.build()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task") / "runs" / "small"
    TextGeneration(small_model(), ByteTokenizer()).save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the run folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.backends
def test_a_saved_task_speaks_as_before(tmp_path):
    task = TextGeneration(small_model(), ByteTokenizer())
    task.save(tmp_path / "run")
    again = load(tmp_path / "run")
    options = {"max_new_tokens": 12, "temperature": 0.9, "seed": 4}
    assert type(again) is TextGeneration and again.tokenizer.hash == task.tokenizer.hash
    assert again.generate(["a dark", ""], **options) == task.generate(["a dark", ""], **options)


def test_the_folder_holds_the_named_files_and_no_parts(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["model.keras", "task.json", "tokenizer"]
    assert json.loads((saved / "task.json").read_text()) == {"format": 1, "task": "TextGeneration"}


def test_saving_again_replaces(tmp_path):
    for seed in (1, 2):
        model = small_model()
        randomize(model, seed=seed)
        TextGeneration(model, ByteTokenizer()).save(tmp_path / "run")
    weights = load(tmp_path / "run").model.get_weights()
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))


def test_a_model_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="knows 300 ids and the tokenizer has 260"):
        TextGeneration(small_model(300), ByteTokenizer())


def test_a_model_of_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match="made for the tokenizer feed"):
        TextGeneration(small_model(tokenizer_hash="feed" * 4), ByteTokenizer())


def test_the_model_keeps_the_hash_of_its_tokenizer(saved):
    assert load(saved).model.tokenizer_hash == ByteTokenizer().hash


def test_a_tokenizer_that_was_exchanged_is_found(folder):
    other = CharacterTokenizer.train(texts=["".join(map(chr, range(0x4E00, 0x4E00 + 256)))])
    assert other.vocabulary_size == 260
    other.save(folder / "tokenizer")
    with pytest.raises(ValueError, match="load the tokenizer that was saved beside the model"):
        load(folder)


def test_no_folder_and_no_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no model\.keras \(found: nothing\)"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"found: notes\.txt"):
        load(tmp_path)


def test_a_disk_that_is_full_at_the_end_of_a_run_is_named(tmp_path, monkeypatch):
    """Keras and h5py name no file; here a real one says so, where it may be mounted."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with small_disk(tmp_path / "disk", 1 << 14) as mounted:
        if not mounted:
            monkeypatch.setattr(zipfile.ZipFile, "open", full)
        with pytest.raises(
            OSError, match="No space left on device, .*free some room, and give the same command"
        ) as said:
            TextGeneration(small_model(), ByteTokenizer()).save(tmp_path / "disk" / "run")
        assert (said.value.errno, said.value.filename) == (errno.ENOSPC, str(tmp_path / "disk" / "run" / "model.keras"))
        assert list((tmp_path / "disk" / "run").iterdir()) == []


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_cut_model_file(folder, part):
    content = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"model\.keras is damaged"):
        load(folder)


def test_a_flipped_bit_in_the_weights(folder):
    content = bytearray((folder / "model.keras").read_bytes())
    content[len(content) // 2] ^= 16
    (folder / "model.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras is damaged"):
        load(folder)


def rewritten(path, change):
    """Write a .keras file anew, its config changed: a whole file."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    change(config["config"])
    content["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"warp_drive": True}, "unexpected keyword argument 'warp_drive'"),
        ({"cell": "minigru"}, "cell must be one of"),
        ({"num_layers": 3}, "2 objects could not be loaded"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_a_whole_file_of_another_version_is_not_called_damaged(folder, change, reason):
    rewritten(folder / "model.keras", lambda config: config.update(change))
    with pytest.raises(ValueError, match=rf"model\.keras is whole, but no model .*{reason}.* written with Keras \d"):
        load(folder)


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_a_model_that_cannot_be_made_is_called_damaged_where_a_byte_of_any_member_changed(folder, name):
    path = folder / "model.keras"
    rewritten(path, lambda config: config.update(warp_drive=True))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == "metadata.json"
        member = archive.getinfo(name)
    content = bytearray(path.read_bytes())
    content[member.header_offset + 30 + len(name) + member.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.keras is damaged: {name} does not match its checksum"):
        load(folder)


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keras.saving, "load_model", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        load(folder)


def test_a_keras_model_that_is_no_language_model(folder):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save(folder / "model.keras")
    with pytest.raises(ValueError, match="expected a LanguageModel"):
        load(folder)


def test_a_missing_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00"])
def test_a_broken_task_file(folder, content):
    (folder / "task.json").write_text(content)
    with pytest.raises(ValueError, match=r"task\.json is damaged"):
        load(folder)


def test_a_task_of_another_version(folder):
    write_json(folder / "task.json", {"format": 1, "task": "Telepathy"})
    with pytest.raises(ValueError, match="names the task 'Telepathy'; this version knows"):
        load(folder)


def test_without_a_task_file_it_is_text_generation(folder):
    (folder / "task.json").unlink()
    assert type(load(folder)) is TextGeneration


def test_a_task_of_ones_own_is_found_by_its_name(tmp_path):
    class Shouting(TextGeneration):
        def generate(self, prompt, max_new_tokens=64, **options):
            return super().generate(prompt, max_new_tokens, **options).upper()

    assert issubclass(Shouting, Task)
    Shouting(small_model(), ByteTokenizer()).save(tmp_path / "run")
    assert type(load(tmp_path / "run")) is Shouting


def test_json_comes_back_as_it_was(tmp_path):
    content = {"text": "naïve \u0000 中", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
