"""Conventions of the package that no linter checks: docstrings, log lines, and the size of rooms."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "yolor_ray").rglob("*.py")), *sorted((ROOT / "jobs").glob("*.py"))]
VAGUE_SUMMARY = re.compile(r"\w+ (what|how|which|those|whether|that)\b", re.IGNORECASE)
EVENT = re.compile(r"event=[a-z][a-z_]* ?")
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
MAX_FILES_AT_ONE_LEVEL = 13


def summaries(source: str) -> list[tuple[int, str]]:
    """Return line number and first line of each docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    docstrings = [(getattr(node, "lineno", 1), ast.get_docstring(node)) for node in nodes]
    return [(line, text.splitlines()[0]) for line, text in docstrings if text]


def log_calls(source: str) -> list[tuple[int, ast.expr]]:
    """Return line number and first argument of each call of a logger."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [
        (call.lineno, call.args[0])
        for call in calls
        if call.func.attr in LOG_METHODS and isinstance(call.func.value, ast.Name) and "log" in call.func.value.id and call.args
    ]


def is_event(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Constant) and isinstance(argument.value, str) and EVENT.match(argument.value) is not None


def test_no_docstring_has_what_how_which_those_whether_or_that_as_its_second_word():
    first_lines = [(path, line, summary) for path in SOURCES for line, summary in summaries(path.read_text())]
    vague = [f"{path}:{line}: {summary}" for path, line, summary in first_lines if VAGUE_SUMMARY.match(summary)]
    assert not vague, "name the thing by its noun:\n" + "\n".join(vague)


def test_a_vague_docstring_is_seen():
    source = 'def f():\n    """Return what a network predicts."""\n\ndef g():\n    """Return predictions, and say how."""\n'
    assert [bool(VAGUE_SUMMARY.match(summary)) for _, summary in summaries(source)] == [True, False]


def test_every_log_line_begins_with_a_literal_event():
    wrong = [f"{path}:{line}" for path in SOURCES for line, argument in log_calls(path.read_text()) if not is_event(argument)]
    assert not wrong, "expected logger.info('event=name key=value', …) with a literal:\n" + "\n".join(wrong)


def test_a_log_line_without_a_literal_event_is_seen():
    source = 'logger.info("event=done run=%s", run)\nlogger.info("done")\nlogger.info(text)\nlogger.info("event=trial_%s", word)\n'
    assert [is_event(argument) for _, argument in log_calls(source)] == [True, False, False, True]
    assert re.match(r"event=[a-z_]*%", "event=trial_%s")


def test_no_event_name_is_assembled():
    assert not [str(path) for path in SOURCES if re.search(r"event=[a-z_]*[%{]", path.read_text())]


def test_no_room_has_many_files_at_one_level():
    files = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(folder): count for folder, count in files.items() if count > MAX_FILES_AT_ONE_LEVEL} == {}


def test_no_module_of_the_package_is_called_by_a_word_that_says_nothing():
    assert not {"utils", "common", "helpers", "misc"} & {path.stem for path in SOURCES}
