"""`predict`: the right digit for each picture, one line for each that is none."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from mnist_jax.commands import evaluate, predict
from mnist_jax.commands.options import EvaluateOptions, PredictOptions, parse_options
from mnist_jax.images import read_image
from mnist_jax.input_pipeline import load_arrays
from mnist_jax.train import Result
from mnist_jax.trained import load_trained
from mnist_jax.trained import predict as predict_images
from tests.test_images import HOSTILE, encode

COMMAND = [sys.executable, "-m", "mnist_jax", "predict"]


@pytest.fixture
def call(sample_run: Result, tests_cache: None, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command, in this process: its exit code, stdout and stderr."""

    def call(*words: str | Path, workdir: Path = sample_run.workdir) -> tuple[int, str, str]:
        words = (*words, "--workdir", workdir)
        options = parse_options(PredictOptions, "predict", [str(word) for word in words])
        capsys.readouterr()
        code = predict.run(options)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def digits(sample_run: Result, tmp_path: Path) -> Path:
    """A folder with twelve test images, and a note."""
    folder = tmp_path / "digits"
    folder.mkdir()
    config = load_trained(sample_run.workdir).config
    for i, image in enumerate(load_arrays("mnist_sample", config).test_images[:12]):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_programs_get_a_list_of_objects(call: Any, digits: Path, sample_run: Result) -> None:
    code, out, err = call(digits, digits / "03.png", "--json")
    found = json.loads(out)
    files = [str(path) for path in (*sorted(digits.glob("*.png")), digits / "03.png")]
    assert (code, err) == (0, "")
    assert [set(answer) for answer in found] == [{"file", "digit", "probabilities"}] * 13
    assert [answer["file"] for answer in found] == files
    images = np.stack([read_image(Path(file)) for file in files])
    expected = predict_images(load_trained(sample_run.workdir), images)
    np.testing.assert_array_equal([answer["probabilities"] for answer in found], expected)
    assert [answer["digit"] for answer in found] == expected.argmax(1).tolist()


def test_people_get_a_chart(call: Any, digits: Path) -> None:
    code, out, _ = call(digits / "03.png")
    (answer,) = json.loads(call(digits / "03.png", "--json")[1])
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"{digits / '03.png'}: {answer['digit']} (")
    for i, (line, p) in enumerate(zip(lines[1:], answer["probabilities"], strict=True)):
        assert re.fullmatch(rf"  {i} [━╸╺ ]* +{100 * p:.1f} %", line)
        assert abs(line.count("━") - 40 * p) <= 1
    # Of more than ten a line each.
    assert len(call(digits)[1].splitlines()) == 12


def test_bad_files_get_a_line_and_the_others_an_answer(
    call: Any, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a\n\x1b[31mb.png").touch()
    names = ["empty.png", "folder", "none.png", "a\n\x1b[31mb.png", "digits/notes.txt"]
    words = [tmp_path / name for name in names]
    code, out, err = call(*words[:3], digits / "03.png", *words[3:], "--json")
    assert code == 1
    assert [answer["file"] for answer in json.loads(out)] == [str(digits / "03.png")]
    lines = err.splitlines()
    reasons = ["empty", "a folder without images", "No such file", "empty", "not an image"]
    for line, name, reason in zip(lines, names, reasons, strict=True):
        assert name.partition("\n")[0] in line
        assert reason in line
        assert line.isprintable()
    assert call(*words, "--json")[:2] == (1, "[]\n")
    assert call(*words)[:2] == (1, "")


def test_standard_input_is_read_once_and_not_without_end(
    call: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (digits / "03.png").read_bytes()
    for data, code in ((content, 0), (b"", 1), (b"\0" * 60_000_000, 1)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert call("-", "--json")[0] == code
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    answers = json.loads(call("-", digits / "03.png", "--json")[1])
    assert answers[0]["file"] == "-"
    assert answers[0]["probabilities"] == answers[1]["probabilities"]


def test_what_the_network_saw_is_shown(call: Any, digits: Path, tmp_path: Path) -> None:
    seen = read_image(digits / "03.png")
    assert call(digits / "03.png", "--show", tmp_path / "seen.png")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seen.png")), seen)
    assert call(digits, "--show", tmp_path / "new" / "seen")[0] == 0
    assert len([*(tmp_path / "new" / "seen").iterdir()]) == 12
    shown = np.asarray(Image.open(tmp_path / "new" / "seen" / "0003_03.png"))
    np.testing.assert_array_equal(shown, seen)
    assert call(digits, "--show", tmp_path / "seen.png")[0] == 2
    before = (digits / "03.png").read_bytes()
    code, _, err = call(digits / "03.png", "--show", digits / ".." / "digits" / "03.png")
    assert (code, "would overwrite" in err) == (2, True)
    assert (digits / "03.png").read_bytes() == before
    code, _, err = call(digits / "03.png", "--show", digits / "notes.txt" / "seen.png")
    assert (code, "cannot be written" in err) == (1, True)


def test_a_full_disk_leaves_no_half_of_what_is_shown(
    call: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    code, _, err = call(digits / "03.png", "--show", tmp_path / "seen.png")
    assert (code, err.splitlines()[-1]) == (
        1,
        f"error: {tmp_path / 'seen.png'} cannot be written: No space left",
    )
    assert not (tmp_path / "seen.png").exists()


@pytest.mark.parametrize("words", [[], ["--jason", "a.png"], ["a.png", "--workdir"]])
def test_wrong_usage_gets_a_box(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(PredictOptions, "predict", words)
    assert exit_.value.code == 2
    assert "predict --help" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "demo"])
def test_help_is_given_without_jax(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "mnist_jax", command, "--help"]
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0
    assert "the one under runs/" in " ".join(process.stdout.split())
    assert not re.search(r"\| +(jax|numpy|PIL)$", process.stderr, re.MULTILINE)


def test_a_run_on_clothes_is_not_asked_for_digits(
    call: Any, digits: Path, sample_run: Result, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"dataset": "fashion_mnist"}))
    code, _, err = call(digits / "03.png", workdir=folder)
    assert code == 1
    assert "was trained on fashion_mnist; name a run on digits" in err


def test_a_device_that_is_not_there_gets_a_line(sample_run: Result, digits: Path) -> None:
    words = [*COMMAND, digits / "03.png", "--workdir", sample_run.workdir]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    process = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert re.match(r"error: JAX finds no device \(JAX_PLATFORMS is cuda\): .", line)


def test_a_reader_that_leaves_gets_no_traceback(sample_run: Result, digits: Path) -> None:
    """Of --help, and of a list of commands: `| head` reads a line, if any."""
    for words in (COMMAND[1:3], [*COMMAND[1:], "--help"], ["-m", "mnist_jax.train", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-u", *words]
        process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (process.returncode, process.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("words", [[*COMMAND[1:], "seven.png"], ["-m", "mnist_jax.train"]])
def test_an_interrupt_while_it_imports_is_no_traceback(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"\| +numpy$", line):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def run_measured(*words: str | Path) -> tuple[int, Any, str, float, float]:
    """The command in a process: its exit code, its object, stderr, seconds, and MB at most."""
    command = [sys.executable, "-c", MEASURE, *COMMAND, "--json", *words]
    started = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    out, megabytes = process.stdout.splitlines()
    return process.returncode, json.loads(out), process.stderr, seconds, float(megabytes)


def test_all_hostile_files_at_once(sample_run: Result, digits: Path, tmp_path: Path) -> None:
    files = []
    for i, (content, _) in enumerate(HOSTILE.values()):
        files.append(tmp_path / f"{i:02}")
        if isinstance(content, bytes):
            files[-1].write_bytes(content)
        else:
            content(files[-1])
    words = (*files, digits / "03.png", "--workdir", sample_run.workdir)
    code, answers, err, seconds, megabytes = run_measured(*words)
    lines = [line for line in err.splitlines() if not line.startswith("INFO: Using")]
    assert code == 1
    assert len(lines) + len(answers) == len(files) + 1
    assert answers[-1]["file"] == str(digits / "03.png")
    assert "Traceback" not in err
    assert seconds < 30
    assert megabytes < 500


LARGE: dict[str, Callable[[], bytes]] = {
    "16 million pixels with transparency": lambda: encode(large("RGBA", 3999)),
    "64 million grey ones": lambda: encode(large("L", 7999)),
    "a JPEG of 100 million": lambda: encode(large("RGB", 10_000), "JPEG"),
    "a progressive one": lambda: encode(large("RGB", 3999), "JPEG", progressive=True),
    "JPEG 2000": lambda: encode(large("RGBA", 2800), "JPEG2000"),
    "WebP": lambda: encode(large("RGBA", 2800), "WEBP", lossless=True, method=0),
    "AVIF": lambda: encode(large("RGBA", 3999), "AVIF", speed=10),
    "floats": lambda: encode(large("L", 3999).convert("F"), "TIFF", compression="tiff_lzw"),
    "CMYK": lambda: encode(large("CMYK", 3999), "TIFF", compression="tiff_lzw"),
}


def large(mode: str, side: int) -> Image.Image:
    image = Image.new("L", (side, side), 255)
    image.paste(0, (side // 3, side // 5, side // 2, side * 4 // 5))
    return image.convert("RGB").convert(mode) if mode != "L" else image


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_that_are_read(name: str, sample_run: Result, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(LARGE[name]())
    code, answers, err, seconds, megabytes = run_measured(file, "--workdir", sample_run.workdir)
    print(f"{name}: {seconds:.1f} s, {megabytes:.0f} MB")
    assert (code, len(answers)) == (0, 1), err
    assert megabytes < 500
    assert seconds < 10  # with the start, which takes up to 5


FORMS: dict[str, tuple[Callable[[Image.Image], Image.Image], str, float]] = {
    "plain": (lambda image: image, "png", 0.5),
    "upscaled": (lambda image: image.resize((280, 280), Image.Resampling.BICUBIC), "png", 1.5),
    "inverted": (lambda image: image.point(lambda level: 255 - level), "png", 1.5),
    "jpeg": (lambda image: image, "jpg", 1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_pictures_are_read_as_the_arrays_are(
    form: str, full_run: Result, tmp_path: Path
) -> None:
    change, suffix, points = FORMS[form]
    config = load_trained(full_run.workdir).config
    arrays = load_arrays("mnist", config)
    for i, image in enumerate(arrays.test_images):
        path = tmp_path / f"{i:05}.{suffix}"
        change(Image.fromarray(image)).save(path, quality=80)
    assert evaluate.run(EvaluateOptions(full_run.workdir)) == 0
    expected = json.loads((full_run.workdir / "evaluation.json").read_text())["test_accuracy"]
    code, answers, *_ = run_measured(tmp_path, "--workdir", full_run.workdir)
    digits = np.array([answer["digit"] for answer in answers])
    accuracy = (digits == arrays.test_labels).mean()
    print(f"{form}: {100 * accuracy:.2f} %, of the arrays {100 * expected:.2f} %")
    assert code == 0
    assert abs(accuracy - expected) <= points / 100


@pytest.mark.slow
def test_a_thousand_files_take_less_than_ten_seconds(sample_run: Result, tmp_path: Path) -> None:
    config = load_trained(sample_run.workdir).config
    for i, image in enumerate(load_arrays("mnist_sample", config).test_images):
        Image.fromarray(image).resize((280, 280)).save(tmp_path / f"{i:04}.png")
    words = ("--workdir", sample_run.workdir)
    *_, alone, _ = run_measured(tmp_path / "0000.png", *words)
    code, answers, _, seconds, _ = run_measured(tmp_path, *words)
    print(f"1,000 files: {seconds:.1f} s, one: {alone:.1f} s")
    assert (code, len(answers)) == (0, 1000)
    assert seconds - alone < 10
