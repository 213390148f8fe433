"""The view of a training on a terminal: its events as lines, the table at the end, and a job in a real pseudo-terminal."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from yolor_ray.train.progress.terminal import TerminalView, class_table, parse_event
from yolor_ray.train.progress.worker_lines import WorkerLines

ROOT = Path(__file__).resolve().parents[3]
EPOCH = "event=epoch epoch=%d/30 lr=0.001 images_per_s=57.4 seconds=1 memory_gb=1.25 loss=14.56 box=5.449 cls=9.116%s eta='0:01:30'"
VALIDATED = " val_loss=13.76 AP=0.4125 AP50=0.8 APs=-1"


def show(*messages: str, width: int = 80, level: int = logging.INFO) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    view = TerminalView(console)
    for message in messages:
        view.emit(logging.LogRecord("x", level, "", 0, message, None, None))
    view.close()
    return console.file.getvalue().splitlines()


def test_fields_of_an_event_are_read_with_their_spaces():
    assert parse_event("event=done next='yolor-ray serve' pose/AP=0.5 restart_reason=''") == (
        "done",
        {"next": "yolor-ray serve", "pose/AP": "0.5", "restart_reason": ""},
    )
    assert parse_event("plain text with a=b") == ("", {})


def test_values_with_spaces_and_apostrophes_are_read_whole():
    message = "event=done report=/my runs/a/report count=2 example='driver's photo.jpg' names='a, 'b'' advice='--data.val=URL sets another'"
    assert parse_event(message)[1] == {
        "report": "/my runs/a/report",
        "count": "2",
        "example": "driver's photo.jpg",
        "names": "a, 'b'",
        "advice": "--data.val=URL sets another",
    }


def test_an_epoch_is_one_line_below_a_header():
    header, first, second = show(EPOCH % (1, ""), EPOCH % (2, VALIDATED))
    assert header.split() == ["epoch", "loss", "val_loss", "AP", "AP50", "images/s", "left", "memory"]
    assert first.split() == ["1/30", "14.6", "–", "–", "–", "57", "0:01:30", "1.2", "GB"]
    assert second.split()[:5] == ["2/30", "14.6", "13.8", "0.412", "0.800"]
    assert len({len(line) for line in (header, first, second)}) == 1 and len(first) <= 80


def test_a_wide_terminal_shows_the_terms_of_the_loss():
    header, line = show(EPOCH % (1, ""), width=120)
    assert header.split()[-2:] == ["box", "cls"] and line.split()[-2:] == ["5.449", "9.116"]


def test_other_events_are_shown_as_text_and_checkpoints_are_not():
    assert show("event=built_in_scenes data=scenes:4 reason='drawn scenes'") == ["built in scenes: data=scenes:4  reason=drawn scenes"]
    assert show("event=checkpoint step=5", "plain [text]") == ["plain [text]"]
    assert show("event=checkpoint step=5", level=logging.ERROR) == ["checkpoint: step=5"]


def test_events_in_the_lines_of_workers_are_shown_and_all_other_text_stays():
    terminal, records = io.StringIO(), []
    view = logging.Handler()
    view.emit = records.append  # type: ignore[method-assign]
    lines = WorkerLines(terminal, Console(file=terminal, width=80), view)
    lines.write("\x1b[36m(RayTrainWorker pid=7, ip=10.0.0.2)\x1b[0m WARNING event=low_acc")
    lines.write("uracy epoch=1/2\n\rpacking: 50%")
    lines.write("(TrainController pid=8) Started\n")
    [record] = records
    assert (record.levelname, record.getMessage()) == ("WARNING", "event=low_accuracy epoch=1/2")
    assert terminal.getvalue() == "\rpacking: 50%(TrainController pid=8) Started\n"


def test_the_end_shows_classes_pictures_and_commands(tmp_path: Path):
    classes = {f"class-{number}": {"objects": number, "AP": 0.5, "AP50": None, "confidence": 0.25} for number in range(45)}
    metrics = {"epoch": 8, "AP": 0.5, "AP50": 0.75, "images": 12, "classes": classes}
    run = tmp_path / "my run"
    (run / "report").mkdir(parents=True)
    (run / "report" / "metrics.json").write_text(json.dumps(metrics))
    lines = show(f"event=done report={run}/report weights={run}/weights next='serve'", width=60)
    text = "\n".join(lines)
    assert "best epoch 8: AP 0.500, AP50 0.750 on 12 images" in text and "5 more in metrics.json" in text
    assert text.index("class-44") < text.index("class-5 ") and "class-4 " not in text
    assert f"  {run}/report/predictions.png" in lines and f"  yolor-ray serve --weights '{run}/weights'" in lines
    assert class_table(metrics).row_count == 40


def in_terminal(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Return the status and the output of a job whose standard error is a pseudo-terminal of 80 columns."""
    primary, secondary = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "yolor_ray", *arguments]
    job = subprocess.Popen(command, stdin=secondary, stdout=secondary, stderr=secondary, cwd=cwd, env=environment)
    os.close(secondary)
    output = b""
    while True:
        try:
            data = os.read(primary, 65536)
        except OSError:
            break
        if not data:
            break
        output += data
    os.close(primary)
    return job.wait(60), output.decode()


def test_a_training_in_a_terminal_shows_lines_and_no_json(tmp_path: Path):
    flags = "--data.train scenes:8 --data.val scenes:4 --data.image_px 64 --optim.epochs 2 --cluster.compute_threads 1"
    status, output = in_terminal("train", "nano", *flags.split(), cwd=tmp_path)
    assert status == 0, output
    assert "built in scenes: data=scenes:8" in output and "      2/2" in output and "best epoch" in output
    assert f"yolor-ray serve --weights {tmp_path}/runs/train/weights" in output
    assert "event=" not in output and '{"run"' not in output


@pytest.mark.parametrize("job", [["train", "nano", "--data.train", "nowhere"]])
def test_a_mistake_in_a_terminal_exits_2_with_the_reason(tmp_path: Path, job: list[str]):
    status, output = in_terminal(*job, cwd=tmp_path)
    assert status == 2 and "DataError" in output and "nowhere/dataset.json: not found" in output
