"""The benchmarks of decoding and of a GPU: their arguments, commands and tables; what they measure runs for minutes."""

import importlib.util
import pathlib
import subprocess
import sys
import textwrap

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def benchmark(name):
    """The module of a script that is no package's; dataclasses look it up by its name."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu, decode = benchmark("gpu"), benchmark("decode")


@pytest.fixture
def peer(tmp_path):
    """A stand-in for the peer's script: speaks for a GPT, fails for the eager one, hangs at an LSTM."""
    path = tmp_path / "peer.py"
    path.write_text(
        textwrap.dedent("""
        import json, sys, time
        print("words of a library")
        if sys.argv[1] == "decode":
            print(json.dumps({"b1_tokens_s": 100.0, "b8_tokens_s": 800.0}))
        elif "lstm" in sys.argv:
            print(json.dumps({"tokens_s": 1.0, "gb": 1.0, "first_5_steps_s": 1.0}), flush=True)
            time.sleep(60)
        elif "--eager" in sys.argv:
            sys.exit("no device")
        else:
            print(json.dumps({"tokens_s": 395594.0, "ms": 41.4, "first_5_steps_s": 20.0, "loss": 1.0, "gb": 16.0}))
        """)
    )
    return str(path)


def test_cases_of_the_gpu_name_peers_that_are_there():
    for case in gpu.CASES:
        if case.backend == "peer":
            assert case.beside is None and case.arguments
        else:
            assert gpu.BY_NAME[case.beside].backend == "peer"
    assert len(gpu.BY_NAME) == len(gpu.CASES)


def test_without_a_peer_its_cases_are_left_out(capsys):
    args = gpu.arguments([])
    assert "jax-gpt" in args.cases and not [name for name in args.cases if name.startswith("peer")]
    for words in (["--cases", "peer-gpt"], ["--steps", "5"], ["--cases", "jax-bert"]):
        with pytest.raises(SystemExit):
            gpu.arguments(words)
    said = capsys.readouterr().err
    assert "need --peer" in said and "above 5" in said


def test_a_gpu_child_gets_the_words_it_needs():
    args = gpu.arguments(["--small", "--steps", "7", "--profile", "jax-gpt", "--peer", "p.py", "--cache", "kept"])
    words = gpu.command_of(gpu.BY_NAME["jax-gpt"], args)
    again = gpu.arguments(words[2:])
    assert (again.child, again.steps, again.small, again.profile) == ("jax-gpt", 7, True, ["jax-gpt"])
    assert "--profile" not in gpu.command_of(gpu.BY_NAME["jax-lstm"], args)
    assert gpu.command_of(gpu.BY_NAME["peer-gpt-eager"], args)[1:] == ["p.py", "train", "gpt", "--eager"]
    environment = gpu.environment_of(gpu.BY_NAME["jax-gpt"], args)
    assert environment["KERAS_BACKEND"] == "jax" and environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert environment["PYTHONPATH"].startswith(str(BENCHMARKS.parent))
    assert environment["JAX_COMPILATION_CACHE_DIR"].endswith("kept")


def test_rows_of_the_gpu_come_as_the_cases_end(peer, capsys):
    cases = ["peer-gpt", "peer-lstm", "peer-gpt-eager", "peer-decode-float32"]
    gpu.main(["--peer", peer, "--limit", "0.5", "--cases", *cases])
    rows = capsys.readouterr().out.splitlines()
    assert "| peer-gpt | 395,594 | - | 31.9% | 16.0 | 20.0 |" in rows  # gpu-facts: 31.9% of 989 TFLOP/s
    assert (
        "| peer-lstm | 1 | - | 0.0% | 1.0 | 1.0 |" in rows
        and "| peer-lstm | killed after 0 s | - | - | - | - |" in rows
    )
    assert "| peer-gpt-eager | ended with 1: no device | - | - | - | - |" in rows
    assert "| peer-decode-float32, batch 1 | 100 | - | 1.6% | - | - |" in rows
    assert rows.count("| peer-decode-float32, batch 8 | 800 | - | - | - | - |") == 2, (
        "as it ends, and in the last table"
    )


def test_the_gpu_stops_when_the_time_is_spent(peer, capsys):
    gpu.main(["--peer", peer, "--total", "0", "--cases", "peer-gpt"])
    assert "| peer-gpt | not begun: no time left | - | - | - | - |" in capsys.readouterr().out


def test_ours_stands_beside_its_peer():
    args = gpu.arguments([])
    ours, theirs = gpu.BY_NAME["jax-decode-float32"], gpu.BY_NAME["peer-decode-float32"]
    said = {"batch": 1, "tokens_s": 1208.0, "gb": 1.0, "first_s": 12.0}
    rows = [(theirs, {"batch": 8, "tokens_s": 1.0}), (theirs, {"batch": 1, "tokens_s": 96.0})]
    assert gpu.row(ours, said, rows, args) == "| jax-decode-float32, batch 1 | 1,208 | 12.58x | 19.9% | 1.0 | 12.0 |"
    assert gpu.row(ours, said, [(theirs, {"failed": "x"})], args).split(" | ")[2] == "-"
    grouped, full = (gpu.flops_per_token(gpu.BY_NAME[name], gpu.FULL) for name in ("jax-grouped", "jax-gpt"))
    assert full - grouped == 6 * 12 * 2 * (768 * 512)  # two thirds of the keys' and values' kernels are gone


def test_a_profile_sums_up_kinds():
    kernels = [["nvjet_hsh_128", 30, 0.03], ["cudnn_sm90_flash_fprop_wgmma", 6, 0.02], ["loop_add_fusion", 3, 0.01]]
    idle = [["loop_add_fusion", 6, 0.003]]
    said = {"kernels": kernels, "idle": idle, "times": 3, "unit": "step", "seconds": 0.08}
    table = gpu.profile_table(gpu.BY_NAME["jax-gpt"], said)
    assert "26.67 ms a step" in table and "kernels fill 75% of it: products 50%, attention 33%, the rest 17%" in table
    assert "idle before loop_add_fusion: 2.0 times a step, 1.000 ms in all" in table
    assert "| nvjet_hsh_128 | products | 10.0 | 10.000 | 50.0% |" in table
    assert "no kernels" in gpu.profile_table(gpu.BY_NAME["jax-gpt"], {**said, "kernels": []})


def test_contenders_of_decoding(capsys):
    assert decode.arguments([]).contenders == [*decode.BACKENDS, *decode.SERVED]
    assert decode.arguments(["--flat"]).contenders == [*decode.BACKENDS]
    assert decode.arguments(["--peer", "p.py"]).contenders[0] == "transformers"
    decode.arguments(["--size", "nano", "--contenders", "jax", "--peer", "p.py"])
    for words in (
        ["--contenders", "transformers"],
        ["--peer", "p.py", "--size", "nano"],
        ["--flat", "--contenders", "litert"],
    ):
        with pytest.raises(SystemExit):
            decode.arguments(words)
    said = capsys.readouterr().err
    assert "need --peer" in said and "one shape" in said and "--flat looks at" in said


def test_a_child_of_decoding_gets_the_words_it_needs():
    args = decode.arguments(["here", "--size", "nano", "--prompt", "9", "--batches", "1", "3", "--vocabulary", "300"])
    again = decode.arguments(decode.command_of("saved_model:xla", args)[2:])
    assert (again.folder, again.child, again.batches, again.prompt) == ("here", "saved_model:xla", [1, 3], 9)
    assert (again.size, again.vocabulary, again.new_tokens) == ("nano", 300, 128)
    args = decode.arguments(["here", "--peer", "p.py"])
    assert decode.command_of("keras_hub:jax", args)[1:] == ["p.py", "here", "--one", "keras_hub:jax"]


def test_prompts_as_ids_and_as_text():
    args = decode.arguments(["--vocabulary", "50257"])
    ids, [text, _] = decode.prompts_of(args, 2), decode.texts_of(args, 2)
    assert [len(row) for row in ids] == [64, 64] and len(text) == 63
    assert [ord(c) - decode.FIRST_CHARACTER + decode.SPECIAL_IDS for c in text] == ids[0][1:].tolist()
    last = chr(decode.FIRST_CHARACTER + args.vocabulary - decode.SPECIAL_IDS - 1)
    assert last.encode(), "no surrogate: every character of the vocabulary is text"


def test_the_line_of_the_peers_is_read():
    line = f"{'transformers':22} batch 8    119.0 tokens/s   first call 8.7 s, then 8.60 s\n"
    found = decode.numbers_of("a warning\n" + line, 2.5)
    assert found == {8: {"tokens_per_second": 119.0, "first_seconds": 8.7, "peak_gb": 2.5}}


def test_our_line_is_that_of_the_peers(capsys):
    decode.report("litert:int8", 1, 7, lambda: 7)
    assert list(decode.numbers_of(capsys.readouterr().out, 1.0)) == [1]
    with pytest.raises(SystemExit, match="7 tokens were asked for, 6 came"):
        decode.report("jax", 1, 7, lambda: 6)


def test_tables_of_decoding_are_medians_beside_transformers_and_the_bound():
    def rounds(*speeds):
        return [{"batches": {1: {"tokens_per_second": s, "first_seconds": 1.0, "peak_gb": 2.0}}} for s in speeds]

    results = {
        "transformers": rounds(30.0, 40.0, 50.0),
        "ctranslate2:float32": [{"failed": "no such module"}],
        "litert:int8": rounds(80.0, 80.0, 10.0),
    }
    table = decode.tables(results, [1, 8], 20e9, 100e6)
    assert "| transformers | 40.0 | 1.00x | 80% | 1.0 | 2.0 |" in table  # the bound is 20e9 / 4 / 100e6 = 50
    assert "| litert:int8 | 80.0 | 2.00x | 40% | 1.0 | 2.0 |" in table  # of one byte a weight: 200
    assert table.count("| ctranslate2:float32 | failed: no such module |") == 2
    assert table.splitlines()[-1].endswith("at batch 1 at most 50.0 in float32, 200.0 in int8 tokens/s")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's C library is used on Linux only")
def test_many_clients_of_a_saved_model_get_their_answers(saved_model):
    words = [sys.executable, BENCHMARKS / "serve.py"]
    first = subprocess.run([*words, "first", saved_model("lstm"), "--repeat", "1"], capture_output=True, text=True)
    assert [line.split(" | ")[0] for line in first.stdout.splitlines()[2:]] == ["| cold"] * 3 + ["| warm"] * 3
    soak = [*words, "soak", saved_model("lstm"), "--minutes", "0.15", "--clients", "4", "--bad", "0.2"]
    done = subprocess.run(soak, capture_output=True, text=True, timeout=300)
    assert "answers that differ: 0; clients that hang: 0" in done.stdout, done.stdout + done.stderr
    for bad in ("10 MB: answered", "no id: RuntimeError", "too wide: RuntimeError", "unequal rows: RuntimeError"):
        assert f"  {bad}: " in done.stdout, done.stdout
    assert {"no signature: ValueError", "no input: ValueError"} <= {
        line.strip().rpartition(":")[0] for line in done.stdout.splitlines()
    }
