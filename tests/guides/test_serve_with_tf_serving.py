"""Every client of guides/serve_with_tf_serving, against a server that speaks the same: one text, the model's own."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
GUIDES = HERE.parents[1] / "guides"
PAGE = (GUIDES / "serve_with_tf_serving.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands():
    """The commands of the page's shells, one each; a line that is not finished goes on in the next."""
    found, waiting = [], ""
    for line in "".join(blocks("sh")).splitlines():
        waiting += line + "\n"
        try:
            found.append(shlex.split(waiting))
            waiting = ""
        except ValueError:  # a quotation is open
            continue
    assert not waiting
    return [command for command in found if command]


@pytest.fixture(scope="module")
def guide():
    spec = importlib.util.spec_from_file_location("serve_with_tf_serving", GUIDES / "serve_with_tf_serving.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(saved_model, tmp_path_factory):
    """`saved_models/books` with version 1 in it, in a folder to stand in."""
    place = tmp_path_factory.mktemp("served")
    (place / "saved_models" / "books").mkdir(parents=True)
    (place / "saved_models" / "books" / "1").symlink_to(saved_model("lstm"))
    return place


@pytest.fixture(scope="module")
def server(folder):
    """Addresses of the two ports."""
    pytest.importorskip("tensorflow_serving", reason="the clients are NOT tried: pip install tensorflow-serving-api")
    command = [sys.executable, str(HERE / "server.py"), str(folder / "saved_models" / "books"), "books"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    program = subprocess.Popen(command, env=environment, **pipes)
    said = program.stdout.readline()
    assert said, "the server has ended"
    ports = json.loads(said)
    assert ports["loaded"] == [], "it answers without TensorFlow's Python, as a server does"
    yield {port: f"localhost:{ports[port]}" for port in ("rest", "grpc")}
    program.stdin.close()
    assert program.wait(timeout=30) == 0


def options_of(guide):
    return {name: values for name, (_, values) in guide.OPTIONS.items() if name != "max_new_tokens"}


def test_the_guide_gets_the_models_text_in_every_way(guide, folder, server, trained, capsys):
    said = guide.main(folder / "saved_models" / "books", server["rest"], server["grpc"])
    options = options_of(guide)
    wanted = [text.text for text in trained("lstm").write(guide.PROMPTS, guide.OPTIONS["max_new_tokens"][1], **options)]
    assert said == dict.fromkeys(("REST, rows", "REST, columns", "gRPC", "the folder"), wanted)
    shown = capsys.readouterr().out
    assert "refused:" in shown and '"sing" not found' in shown
    for text, probability in zip(guide.PROMPTS, trained("lstm").score(guide.PROMPTS), strict=True):
        assert f"ln p({text!r}) = {probability:.2f}, {len(text.encode())} tokens" in shown


def test_every_curl_of_the_page(server, trained):
    if shutil.which("curl") is None:
        pytest.skip("the commands of the page are NOT tried: there is no curl here")
    curls = [command for command in commands() if command[0] == "curl"]
    answers = []
    for command in curls:
        done = subprocess.run(
            [part.replace("localhost:8501", server["rest"]) for part in command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    status, rows, options, columns, score, logits = answers
    task, night, house = trained("lstm"), "It was a dark night", "The old house"
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert [row["generated_text"] for row in rows["predictions"]] == task.generate([night, house])
    assert set(rows["predictions"][0]) == {"generated_text", "num_tokens", "token_ids", "truncated"}
    sampled = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 7}
    wanted = [task.generate(night, 20), task.generate(night, 20, **sampled)]
    assert [row["generated_text"] for row in options["predictions"]] == wanted
    latin = task.ids_of(b"Zo\xeb")
    new = columns["outputs"]["token_ids"][1][: columns["outputs"]["num_tokens"][1]]
    assert columns["outputs"]["generated_text"][0] == task.generate(house)
    assert new == task.model.generate([latin], 64, eos_id=2, suppressed_ids=task.tokenizer.suppressed_ids)[0].tolist()
    assert score["outputs"]["log_probability"] == pytest.approx([task.score(night)], abs=1e-3)
    found = np.array(logits["outputs"])
    np.testing.assert_allclose(found, np.asarray(task.model(np.array([[1, 77, 120]]))), atol=1e-4)


def test_saved_model_cli(folder, trained):
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = [command for command in commands() if command[0] != "curl"]
    assert [command[0] for command in ran] == ["saved_model_cli", "python"]
    said = []
    for command in ran:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout)
    assert "inputs['repetition_penalty'] tensor_info" in said[0] and "outputs['generated_text']" in said[0]
    text = re.search(r"Result for output key generated_text:\n\[b(['\"])(.*?)\1\]", said[1], re.DOTALL)
    assert text[2] == trained("lstm").generate("It was a dark night")


def test_the_java_program_of_the_page(server, trained, tmp_path):
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("the Java program is NOT tried: there is no javac here (apt-get install openjdk-17-jdk-headless)")
    (program,) = blocks("java")
    (tmp_path / "Ask.java").write_text(program.replace("localhost:8501", server["rest"]))
    done = subprocess.run(["java", str(tmp_path / "Ask.java")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["predictions"][0]
    assert row["generated_text"] == trained("lstm").generate("It was a dark night")


def test_the_go_program_of_the_page(server, trained, tmp_path):
    if shutil.which("go") is None:
        pytest.skip("the Go program is NOT tried: there is no go here")
    (program,) = blocks("go")
    (tmp_path / "ask.go").write_text(program.replace("localhost:8501", server["rest"]))
    done = subprocess.run(["go", "run", str(tmp_path / "ask.go")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == trained("lstm").generate("It was a dark night")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": ["a"], "inputs": {"text": ["a"]}}, "'inputs' or 'instances'"),
        ({"instances": []}, "one row or more"),
        ({"instances": [1]}, "not of the type"),
        ({"signature_name": "generate", "instances": ["a"]}, "every row names the same inputs"),
        ({"signature_name": "generate", "inputs": {"text": ["a"], "top_k": [0.5]}}, "not of the type"),
        ({"signature_name": "generate", "inputs": {"temperature": [0.5]}}, "takes the inputs"),
        ({"signature_name": "score", "inputs": {"words": ["a"]}}, "not of the type"),
    ],
)
def test_a_wrong_request_is_refused_in_words(guide, server, request_, message):
    with pytest.raises(ValueError, match=message):
        guide.rest(server["rest"], "books", request_)


def test_a_model_that_is_not_there_is_refused(guide, server):
    import grpc

    with pytest.raises(ValueError, match="Servable not found"):
        guide.rest(server["rest"], "letters", {"instances": ["a"]})
    with pytest.raises(grpc.RpcError) as caught:
        guide.ask_over_grpc(server["grpc"], "letters")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
