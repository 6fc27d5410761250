"""`predict`: the digit in each picture, and one line for each that cannot be read."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_jax.commands import predict
from mnist_jax.data.sources import load_arrays
from mnist_jax.inference.images import read_image
from mnist_jax.inference.predictor import Predictor, load_predictor
from mnist_jax.train import Result
from tests.helpers import BAD_FILES, call, draw_seven, encode

COMMAND = [sys.executable, "-m", "mnist_jax", "predict"]


@pytest.fixture
def run(sample_run: Result, tests_cache: None, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process. Returns its exit code, stdout and stderr."""

    def run(*words: str | Path, workdir: Path = sample_run.workdir) -> tuple[int, str, str]:
        capsys.readouterr()
        code = call(predict, *words, "--workdir", workdir)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def digits(predictor: Predictor, tmp_path: Path) -> Path:
    """A folder with twelve test images and a text file."""
    folder = tmp_path / "digits"
    folder.mkdir()
    arrays = load_arrays("mnist_sample", predictor.config)
    for i, image in enumerate(arrays.test_images[:12]):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_json_is_a_list_with_one_object_per_picture(
    run: Any, digits: Path, predictor: Predictor
) -> None:
    code, out, err = run(digits, digits / "03.png", "--json")
    found = json.loads(out)
    files = [str(path) for path in (*sorted(digits.glob("*.png")), digits / "03.png")]
    assert (code, err) == (0, "")
    assert [set(object_) for object_ in found] == [{"file", "digit", "probabilities"}] * 13
    assert [object_["file"] for object_ in found] == files
    images = np.stack([read_image(Path(file)) for file in files])
    expected = predictor.probabilities(images)
    np.testing.assert_array_equal([object_["probabilities"] for object_ in found], expected)
    assert [object_["digit"] for object_ in found] == expected.argmax(1).tolist()


def test_a_few_pictures_get_a_chart_and_many_a_line(run: Any, digits: Path) -> None:
    lines = run(digits / "03.png")[1].splitlines()
    (expected,) = json.loads(run(digits / "03.png", "--json")[1])
    assert lines[0].startswith(f"{digits / '03.png'}: {expected['digit']} (")
    for i, (line, p) in enumerate(zip(lines[1:], expected["probabilities"], strict=True)):
        assert re.fullmatch(rf"  {i} [━╸╺ ]* +{100 * p:.1f} %", line)
        assert abs(line.count("━") - 40 * p) <= 1
    assert len(run(digits)[1].splitlines()) == 12


def test_bad_files_get_a_line_and_the_others_a_digit(
    run: Any, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a\n\x1b[31mb.png").touch()
    names = ["empty.png", "folder", "none.png", "a\n\x1b[31mb.png", "digits/notes.txt"]
    words = [tmp_path / name for name in names]
    code, out, err = run(*words[:3], digits / "03.png", *words[3:], "--json")
    assert code == 1
    assert [object_["file"] for object_ in json.loads(out)] == [str(digits / "03.png")]
    reasons = ["empty", "nor a folder", "No such file", "empty", "not an image"]
    for line, name, reason in zip(err.splitlines(), names, reasons, strict=True):
        assert name.partition("\n")[0] in line
        assert reason in line
        assert line.isprintable()
    assert run(*words, "--json")[:2] == (1, "[]\n")
    assert run(*words)[:2] == (1, "")


def test_standard_input_is_read_up_to_a_limit(
    run: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (digits / "03.png").read_bytes()
    for data, code in ((None, 1), (b"", 1), (b"\0" * 60_000_000, 1), (content, 0)):
        stdin = None if data is None else SimpleNamespace(buffer=io.BytesIO(data))
        monkeypatch.setattr(sys, "stdin", stdin)
        found = run("-", digits / "03.png", "--json")
        assert found[0] == code
    objects = json.loads(found[1])
    assert objects[0]["file"] == "-"
    assert objects[0]["probabilities"] == objects[1]["probabilities"]


def test_show_saves_what_the_network_sees(run: Any, digits: Path, tmp_path: Path) -> None:
    seen = read_image(digits / "03.png")
    assert run(digits / "03.png", "--show", tmp_path / "seen.png")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seen.png")), seen)
    assert run(digits, "--show", tmp_path / "new" / "seen")[0] == 0
    assert len([*(tmp_path / "new" / "seen").iterdir()]) == 12
    shown = np.asarray(Image.open(tmp_path / "new" / "seen" / "0003_03.png"))
    np.testing.assert_array_equal(shown, seen)


def test_show_refuses_a_wrong_place(
    run: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (digits / "03.png").read_bytes()
    code, _, err = run(digits / "03.png", "--show", digits / ".." / "digits" / "03.png")
    assert (code, "would overwrite" in err) == (2, True)
    assert (digits / "03.png").read_bytes() == before
    (tmp_path / "seen").mkdir()
    kept = shutil.copy(digits / "03.png", tmp_path / "seen" / "0001_03.png")
    code, _, err = run(digits / "04.png", digits / "03.png", kept, "--show", tmp_path / "seen")
    assert (code, f"would overwrite {kept}" in err) == (2, True)
    assert os.listdir(tmp_path / "seen") == ["0001_03.png"]  # nothing is half done
    code, _, err = run(digits, "--show", tmp_path / "seen.png")
    assert (code, "one file for 12 pictures" in err) == (2, True)


def test_a_missing_device_is_named(sample_run: Result, digits: Path) -> None:
    words = [*COMMAND, digits / "03.png", "--workdir", sample_run.workdir]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    process = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert re.match(r"error: JAX finds no device \(JAX_PLATFORMS is cuda\): .", line)


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def run_measured(*words: str | Path) -> tuple[int, Any, str, float, float]:
    """Runs the command in a process: exit code, JSON, stderr, seconds, and peak memory in MB."""
    command = [sys.executable, "-c", MEASURE, *COMMAND, "--json", *words]
    started = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    out, megabytes = process.stdout.splitlines()
    return process.returncode, json.loads(out), process.stderr, seconds, float(megabytes)


def test_bad_files_cost_little_time_and_memory(
    sample_run: Result, digits: Path, tmp_path: Path
) -> None:
    files = []
    for i, (content, _) in enumerate(BAD_FILES.values()):
        files.append(tmp_path / f"{i:02}")
        if isinstance(content, bytes):
            files[-1].write_bytes(content)
        else:
            content(files[-1])
    words = (*files, digits / "03.png", "--workdir", sample_run.workdir)
    code, objects, err, seconds, megabytes = run_measured(*words)
    assert code == 1
    names = [object_["file"] for object_ in objects]
    for file in files:  # each has either a digit or a line
        assert (str(file) in names) != (f"{file}: " in err)
    assert names[-1] == str(digits / "03.png")
    assert seconds < 30
    assert megabytes < 500


def large(mode: str, side: int) -> Image.Image:
    return draw_seven((side, side)).convert(mode)


LARGE: dict[str, Callable[[], bytes]] = {
    "16 million pixels with transparency": lambda: encode(large("RGBA", 3999)),
    "64 million grey pixels": lambda: encode(large("L", 7999)),
    "a JPEG of 100 million pixels": lambda: encode(large("RGB", 10_000), "JPEG"),
    "a progressive JPEG": lambda: encode(large("RGB", 3999), "JPEG", progressive=True),
    "JPEG 2000": lambda: encode(large("RGBA", 2800), "JPEG2000"),
    "WebP": lambda: encode(large("RGBA", 2800), "WEBP", lossless=True, method=0),
    "floats": lambda: encode(large("L", 3999).convert("F"), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LARGE])
def test_the_largest_pictures_are_read(name: str, sample_run: Result, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(LARGE[name]())
    code, objects, err, seconds, megabytes = run_measured(file, "--workdir", sample_run.workdir)
    assert (code, len(objects)) == (0, 1), err
    assert megabytes < 500
    assert seconds < 10  # with the start of the program, up to 5 s


@pytest.mark.slow
@pytest.mark.parametrize(("side", "suffix", "points"), [(28, "png", 0.5), (280, "jpg", 1.5)])
def test_pictures_of_the_test_set_score_like_its_arrays(
    side: int, suffix: str, points: float, full_run: Result, tmp_path: Path
) -> None:
    arrays = load_arrays("mnist", load_predictor(full_run.workdir).config)
    for i, pixels in enumerate(arrays.test_images):
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{i:05}.{suffix}", quality=80)
    code, objects, _, seconds, _ = run_measured(tmp_path, "--workdir", full_run.workdir)
    digits = np.array([object_["digit"] for object_ in objects])
    accuracy = (digits == arrays.test_labels).mean()
    print(f"{accuracy:.2%}, arrays {full_run.test.accuracy:.2%}; {seconds:.1f} s")
    assert code == 0
    assert abs(accuracy - full_run.test.accuracy) <= points / 100
    assert seconds < 100  # 10 s for 1,000 files
