"""Totals of metrics, and where the metrics of a run are written."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from mnist_jax.runtime import metric_writer
from mnist_jax.runtime.metric_writer import MetricWriter, Totals


def make_record(epoch: int) -> dict[str, Any]:
    running, test = Totals(0.5 * 100, 25, 100), Totals(0.25 / epoch * 10, 9, 10)
    sums = running.as_record("running_train") | test.as_record("test")
    return {"epoch": epoch, "step": 32 * epoch, **sums, "seconds": 1.26}


HISTORY = [make_record(1), make_record(2)]
LINES = [json.dumps(record) + "\n" for record in HISTORY]


def test_totals_weigh_examples_and_not_batches_and_add_in_float64() -> None:
    # In float32, the small losses would vanish beside the large one.
    losses = np.array([2.0**24, 1.0, 1.0, 1.0], np.float32)
    totals = Totals().add(losses, np.array([1, 2, 3, 0]), np.array([4, 4, 4, 3]))
    assert (totals.loss, totals.accuracy) == ((2**24 + 3) / 15, 6 / 15)
    assert totals.as_record("test") == {
        "test_loss": (2**24 + 3) / 15, "test_accuracy": 0.4, "test_correct": 6, "test_count": 15
    }  # fmt: skip
    assert str(Totals(0.0, 9803, 10_000)) == "98.03 % (9,803 of 10,000)"


@pytest.mark.parametrize("size", [1, 7, 64])
def test_totals_do_not_depend_on_the_size_of_the_chunks(size: int) -> None:
    losses = (10.0 ** np.random.default_rng(0).uniform(-6, 6, 469)).astype(np.float32)
    ones, totals = np.ones(469, int), Totals()
    for start in range(0, 469, size):
        totals = totals.add(losses[start : start + size], *[ones[start : start + size]] * 2)
    assert totals == Totals().add(losses, ones, ones)


def test_an_epoch_is_appended_to_the_file_the_history_and_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricWriter(tmp_path, [], 10, tensorboard=False) as writer:
        for epoch, record in enumerate(HISTORY, start=1):
            writer.write(record)
            assert (tmp_path / "metrics.jsonl").read_text() == "".join(LINES[:epoch])
    assert writer.history == HISTORY
    assert capsys.readouterr().out.splitlines()[1] == (
        "epoch  2/10   running train loss 0.5000 accuracy 25.00 %"
        "   test loss 0.1250 accuracy 90.00 %   1.3 s"
    )


@pytest.mark.parametrize(
    ("found", "warning"),
    [
        (LINES[0] + '{"epoch": 2, "ste', "damaged"),
        ("\x00" * 50, "damaged"),
        ("".join(LINES) + LINES[1], ""),  # the checkpoint of this epoch was not complete yet
        ("".join(LINES) + LINES[0] + LINES[1], "checkpoints after epoch 2 are missing"),
    ],
)
def test_the_file_is_rewritten_from_the_checkpoints_history(
    found: str, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text(found)
    with MetricWriter(tmp_path, HISTORY, 10, tensorboard=False):
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(LINES)
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_progress_bar_moves_on_a_terminal_only(
    is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, soft_wrap=True)
    monkeypatch.setattr(metric_writer, "console", console)
    with MetricWriter(tmp_path, [], 2, tensorboard=False).progress_bar(2, 32) as update:
        for step in (16, 32):
            update(step, Totals(step / 2, step // 4, step).as_record("running_train"))
    shown = "32/32   running train loss 0.5000 accuracy 25.00 %" in console.file.getvalue()
    assert shown == is_terminal


def test_tensorboard_events_hold_the_metrics_after_the_checkpoint(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, HISTORY[:1], 10, tensorboard=True) as writer:
        writer.write(HISTORY[1])
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # a TFRecord: length (8 bytes), its CRC (4), the event, its CRC (4)
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    shown = {(event.step, v.tag): v.simple_value for event in events for v in event.summary.value}
    assert shown == pytest.approx({(64, name): value for name, value in HISTORY[1].items()})
    # From this step on, TensorBoard ignores the events of earlier files.
    assert [event.step for event in events if event.HasField("session_log")] == [33]
