"""The command line: flags in, one JSON object out, an exit status that separates the user's mistakes from all other failures.

`yolor-ray JOB …`, `python -m yolor_ray JOB …` and `python jobs/JOB.py …` run the same job. Flags are read before torch and Ray are
imported, so `--help` and a mistyped flag answer at once.
"""

import argparse
import contextlib
import functools
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import tyro

import yolor_ray
from yolor_ray import config
from yolor_ray.cluster.environment import PROCESS_SETTINGS
from yolor_ray.config.benchmark import BENCHMARK_DESCRIPTIONS, BENCHMARKS, PRESET_BENCHMARKS
from yolor_ray.config.dotted import from_json, similar_names
from yolor_ray.config.presets import DESCRIPTIONS, PRESETS
from yolor_ray.config.renamed import current_arguments
from yolor_ray.config.study import STUDIES, STUDY_DESCRIPTIONS
from yolor_ray.errors import CheckFailed, ConfigError, LedgerError, Preempted, UserError, YolorError
from yolor_ray.io.redact import hide_secrets, redact, refuse_credentials

EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED, EXIT_PREEMPTED = 1, 2, 130, 143
VIEWED_JOBS = {"train"}
"""Jobs whose log is shown as a table on a terminal."""
STUDY_PRESET = "nano"
"""Preset of a study whose arguments name no preset."""
PRESET_FILE = "Instead of the name, --preset-file URL takes the config.json of a run or the preset.json of a search; flags override it."
USAGE = "usage: yolor-ray JOB [FLAGS]    (the same: python jobs/JOB.py [FLAGS])"


@dataclass(frozen=True)
class Job:
    """A job of the command line."""

    description: str
    read: Callable[[list[str], str], Any]
    """Makes the configuration of the arguments; the second parameter is the name of the program in its help."""
    target: str
    """The function that takes the configuration and returns the result, as module:function; imported after the flags are read."""


def main(job: str | None = None) -> NoReturn:
    """Run a job of `JOBS` with the arguments of this process, and exit; without `job` the first argument names the job.

    The result is printed as the last line on standard output, except that of a training on a terminal. Exit status: 0 done, 2 the
    user's mistake, 130 ended by Ctrl-C and 143 by another signal, both with a checkpoint of a training, 1 anything else.
    """
    if job is not None:
        run(job, JOBS[job], sys.argv[1:], f"python jobs/{job}.py")
    name, *arguments = sys.argv[1:] or [""]
    if name in JOBS:
        run(name, JOBS[name], arguments, f"yolor-ray {name}")
    if name == "--version":
        sys.stdout.write(f"yolor_ray {yolor_ray.__version__}\n")
        sys.exit(0)
    listed = "\n".join(f"  {name:10} {job.description}" for name, job in JOBS.items())
    overview = f"{USAGE}\n\n{listed}\n\nyolor-ray JOB --help lists the flags of a job; yolor-ray --version prints the version.\n"
    if name in ("-h", "--help"):
        sys.stdout.write(overview)
        sys.exit(0)
    expected = similar_names(name, JOBS) or f"one of {', '.join(JOBS)}"
    sys.stderr.write(f"{overview}\nConfigError: job: found {name!r}, expected {expected}\n" if name else overview)
    sys.exit(EXIT_USER)


def run(name: str, job: Job, arguments: Sequence[str], program: str) -> NoReturn:
    """Read the arguments into the job's configuration, call its target and exit; see `main`."""
    missing = {variable: value for variable, value in PROCESS_SETTINGS.items() if variable not in os.environ}
    if missing:
        # glibc reads these variables only when a process starts.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    hide_secrets()
    sys.exit(_run(name, job, arguments, program))


def _run(name: str, job: Job, arguments: Sequence[str], program: str) -> int:
    module, function = job.target.split(":")
    try:
        refuse_credentials("command line: argument", arguments)
        settings = job.read(current_arguments(name, arguments), program)
        _check_buckets(settings)
        with _view_of(name) as is_shown:
            result = getattr(importlib.import_module(module), function)(settings)
    except UserError as error:
        sys.stderr.write(redact(f"{type(error).__name__}: {error}\n"))
        return EXIT_USER
    except CheckFailed as error:
        sys.stderr.write(redact(f"{type(error).__name__}: {error}\n"))
        _print_result(error.result)
        return EXIT_FAILED
    except Preempted as error:
        interrupted = error.signal_name == "SIGINT"
        # A closed terminal takes no text.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{'interrupted' if interrupted else 'preempted'}: {error}\n")
        return EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except YolorError as error:
        if isinstance(error, LedgerError):
            # A bug of this package: its report needs the traceback.
            raise
        sys.stderr.write(redact(f"{type(error).__name__}: {error}\n"))
        return EXIT_FAILED
    # A person has seen the result in the view.
    if not (is_shown and sys.stdout.isatty()):
        _print_result(result)
    return 0


def _print_result(result: Any) -> None:
    sys.stdout.write(json.dumps(_without_nan(result)) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _view_of(job: str) -> Iterator[bool]:
    """Show the progress of a training on a terminal; yields False where the job writes log lines."""
    if job not in VIEWED_JOBS or not sys.stderr.isatty():
        yield False
        return
    from yolor_ray.train.progress.terminal import is_terminal, shown_on_terminal

    if not is_terminal():
        yield False
        return
    with shown_on_terminal():
        yield True


def _check_buckets(settings: Any) -> None:
    """Raise StorageError if a bucket of the settings cannot be reached; a running job would wait minutes for the bucket."""
    # The import of pyarrow takes longer than `--help` may take.
    from yolor_ray.io.filesystem import check_reachable, urls_in

    check_reachable(urls_in(settings))


def read_flags(config_type: Any, arguments: Sequence[str], program: str, **options: Any) -> Any:
    """Return the configuration of the given type that the arguments describe; exits with status 2 at an unknown flag."""
    return tyro.cli(config_type, prog=program, args=arguments, use_underscores=True, config=(tyro.conf.OmitSubcommandPrefixes,), **options)


def read_training(arguments: Sequence[str], program: str) -> config.TrainConfig:
    """Return a preset changed by flags, or the settings of the file behind `--preset-file URL` changed by flags.

    Raises:
        ConfigError: there is no preset, or both a name and a file, or the file holds no settings.
    """
    if not arguments:
        raise ConfigError(f"preset: found none, expected one of {', '.join(PRESETS)}, or --preset-file URL; --help describes them")
    url, remaining = _preset_file(arguments)
    name = _preset_name(remaining)
    if url is not None:
        return read_flags(config.TrainConfig, remaining, program, default=_from_file(url, name))
    if name is not None:
        # A union of all presets would answer a mistyped flag with the help of all presets.
        return read_flags(config.TrainConfig, remaining[1:], f"{program} {name}", default=PRESETS[name], description=DESCRIPTIONS[name])
    if not {"-h", "--help"} & set(remaining):
        raise ConfigError(f"preset: found the flag {remaining[0]} first, expected one of {', '.join(PRESETS)}, and then flags")
    return read_flags(
        _subcommands(PRESETS, DESCRIPTIONS), remaining, program, description=f"Train a preset: its name, then flags. {PRESET_FILE}"
    )


def read_study(
    studies: Mapping[str, Callable[[config.TrainConfig], Any]], descriptions: Mapping[str, str], arguments: Sequence[str], program: str
) -> Any:
    """Return a study: its name, then a preset's name (default: `STUDY_PRESET`) or `--preset-file URL`, then flags of both.

    Raises:
        ConfigError: the preset is unknown, or there are both a name and a file, or the file holds no settings.
    """
    url, remaining = _preset_file(arguments)
    study, after_study = next(iter(remaining), ""), remaining[1:]
    # Were the preset a subcommand below the study's, the study would refuse the preset's flags as misplaced.
    preset = _preset_name(after_study) if study in studies else None
    train = PRESETS[preset or STUDY_PRESET] if url is None else _from_file(url, preset)
    hint = f"A preset's name may follow the study's: {', '.join(PRESETS)} (default: {STUDY_PRESET}). {PRESET_FILE}"
    defaults = {name: make(train) for name, make in studies.items()}
    if study in studies:
        flags, text = after_study[preset is not None :], f"{descriptions[study]} {hint}"
        return read_flags(type(defaults[study]), flags, f"{program} {study}", default=defaults[study], description=text)
    return read_flags(_subcommands(defaults, descriptions), remaining, program, description=hint)


def read_benchmark(arguments: Sequence[str], program: str) -> Any:
    """Return a benchmark: its name and its flags; a benchmark of `PRESET_BENCHMARKS` is read like a study.

    Raises:
        ConfigError: as `read_study`.

    """
    name, flags = next(iter(arguments), ""), list(arguments[1:])
    if name in PRESET_BENCHMARKS:
        # Version 0.2 read the preset's name of this benchmark after the benchmark's own flags.
        preset = [flag for before, flag in zip(["", *flags], flags, strict=False) if flag in PRESETS and not before.startswith("--")][:1]
        for word in preset:
            flags.remove(word)
        return read_study(PRESET_BENCHMARKS, BENCHMARK_DESCRIPTIONS, [name, *preset, *flags], program)
    if name in BENCHMARKS:
        settings, text = BENCHMARKS[name], BENCHMARK_DESCRIPTIONS[name]
        return read_flags(type(settings), flags, f"{program} {name}", default=settings, description=text)
    return read_flags(_subcommands(BENCHMARKS, BENCHMARK_DESCRIPTIONS), arguments, program)


def _subcommands(defaults: Mapping[str, Any], descriptions: Mapping[str, str]) -> Any:
    return tyro.extras.subcommand_type_from_defaults(dict(defaults), dict(descriptions), prefix_names=False)


def _preset_file(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the URL behind `--preset-file`, at any position, and the other arguments."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--preset-file", "--preset_file", action="append", default=[], metavar="URL")
    flags, remaining = reader.parse_known_args(arguments)
    if len(flags.preset_file) > 1:
        raise ConfigError(f"--preset-file: found {' and '.join(flags.preset_file)}, expected one URL")
    return next(iter(flags.preset_file), None), remaining


def _preset_name(arguments: Sequence[str]) -> str | None:
    """Return the preset that the first argument names; None where the first argument is a flag."""
    name = next(iter(arguments), "-")
    if name.startswith("-"):
        return None
    if name not in PRESETS:
        raise ConfigError(f"preset: found {name!r}, expected {similar_names(name, PRESETS) or 'one of ' + ', '.join(PRESETS)}")
    return name


def _from_file(url: str, name: str | None) -> config.TrainConfig:
    if name is not None:
        raise ConfigError(f"preset: found the name {name!r} beside --preset-file {url}, expected one of the two")
    # The import of pyarrow takes longer than `--help` may take.
    from yolor_ray.io import storage

    return from_json(url, storage.read_bytes(url))


def _without_nan(value: Any) -> Any:
    """Return `value` with NaN and infinity as null: JSON has no number for them."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


JOBS = {
    "pack": Job(
        "Check annotated images and pack them into shards: a folder (auto), voc, coco, yolo, crops, or built-in scenes; check a dataset.",
        functools.partial(read_flags, config.AnyPackConfig),
        "yolor_ray.pack.run:pack",
    ),
    "train": Job("Train a preset's network; the same command again resumes the run.", read_training, "yolor_ray.train.run:train"),
    "evaluate": Job(
        "Measure weights on a dataset (--weights, --data), or a COCO results file (--truth, --results).",
        functools.partial(read_flags, config.EvaluateConfig),
        "yolor_ray.evaluate.run:evaluate",
    ),
    "export": Job(
        "Fuse weights and write them as safetensors, ONNX or OpenVINO; import the authors' checkpoints (--upstream).",
        functools.partial(read_flags, config.ExportConfig),
        "yolor_ray.export.run:export",
    ),
    "predict": Job(
        "Find objects in a folder of images, a list, a packed dataset or a video; write Parquet, COCO JSON and pictures.",
        functools.partial(read_flags, config.PredictConfig),
        "yolor_ray.predict.run:predict",
    ),
    "tune": Job(
        "Compare trainings: ablation of implicit knowledge, search of a recipe, tasks alone and together.",
        functools.partial(read_study, STUDIES, STUDY_DESCRIPTIONS),
        "yolor_ray.study.run:tune",
    ),
    "serve": Job("Serve weights over HTTP.", functools.partial(read_flags, config.ServeConfig), "yolor_ray.serve.run:serve"),
    "release": Job(
        "Release weights to running services as a new version, or go back to the version before (--back).",
        functools.partial(read_flags, config.ReleaseConfig),
        "yolor_ray.release.run:release",
    ),
    "benchmark": Job(
        "Measure ingest, inference, learning, scoring or prediction on this machine or cluster.",
        read_benchmark,
        "yolor_ray.benchmark.run:benchmark",
    ),
}
