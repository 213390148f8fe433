"""Call the readers of `hostile_readers` in this process, and measure each call: `python tests/support/fuzz.py …`.

- `fuzz READER SEED SECONDS FOLDER` reads changed inputs for a time. Each input that breaks a promise is written into FOLDER.
- `check FILE…` reads the valid inputs of all readers, the inputs of `poisons`, and files; the name of a file's folder is that of its
  reader. `as_expected` is true for a valid input that is read, a poison that is refused with the right message, and a file that keeps
  the promises.

Every line of standard output is one JSON object: `reader`, `input`, `outcome`, `message`, `cpu_s`, `mb`. The outcome `read` or `refused` is
right; `failed` is another exception, `slow` and `large` break the limits. A process that stands still ends with a traceback. The address
space is limited, so that no input can take the memory of the machine.
"""

import faulthandler
import functools
import gc
import itertools
import json
import logging
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile_readers import READERS, Reader
from poisons import poisons

NEVER_READ = ("upstream", "graph")
"""Readers without a valid input among theirs: real checkpoints and graphs are large."""
LIMIT_TURNS, LIMIT_MB = 100_000_000, 500.0
"""Processor time, in turns of an empty loop on this machine, and memory that an input may take: 2 s where a turn takes 20 ns."""
MEASURED_TURNS = 4_000_000
HANG_CPU_S, HANG_S = 20, 240
"""Processor time, and time, after which a call stands still: beyond the limit, as other processes may have the processor."""
MAX_EXTRA_BYTES = 4 << 30
MAX_MESSAGE = 400


def peak_mb() -> float:
    """Return the largest resident memory since `forget_peak`, MB."""
    return _status("VmHWM")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1000


def forget_peak() -> None:
    """Make the present resident memory the largest one."""
    Path("/proc/self/clear_refs").write_text("5")


@functools.cache
def limit_s() -> float:
    """Return the processor time that an input may take in this process."""
    started = time.process_time()
    for _ in range(MEASURED_TURNS):
        pass
    return LIMIT_TURNS * (time.process_time() - started) / MEASURED_TURNS


def limit_memory() -> None:
    """Refuse memory far beyond the present need."""
    limit = int(_status("VmSize") * 1000) + MAX_EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def call(reader: Reader, name: str, data: bytes) -> dict[str, Any]:
    """Read an input in an empty folder and return the line of output."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        forget_peak()
        memory, started = _status("VmRSS"), time.process_time()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        signal.setitimer(signal.ITIMER_PROF, HANG_CPU_S)
        try:
            reader.read(Path(folder), data)
            outcome, message = "read", ""
        except reader.errors as error:
            outcome, message = "refused", f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 - any other exception is the finding
            outcome, message = "failed", f"{type(error).__name__}: {error} {_place(error)}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        cpu_s, mb = time.process_time() - started, max(peak_mb() - memory, 0.0)
    message = message.replace(folder, "FOLDER")
    if outcome != "failed" and (cpu_s > limit_s() or mb > LIMIT_MB):
        outcome = "slow" if cpu_s > limit_s() else "large"
    return {"input": name, "outcome": outcome, "message": message[:MAX_MESSAGE], "cpu_s": round(cpu_s, 3), "mb": round(mb, 1)}


def _place(error: BaseException) -> str:
    """Return the last two places of this package in a traceback."""
    places, trace = [], error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        places += [f"{Path(code.co_filename).name}:{trace.tb_lineno}"]
        trace = trace.tb_next
    return " < ".join(reversed(places[-4:]))


def replay(files: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of files."""
    for path in map(Path, files):
        line = call(READERS[path.parent.name], str(path), path.read_bytes())
        yield {"reader": path.parent.name, **line, "as_expected": line["outcome"] in ("read", "refused")}


def read_valid() -> Iterator[dict[str, Any]]:
    """Yield the lines of valid inputs, after one call of each reader, which imports what the reader needs."""
    for name, reader in READERS.items():
        seeds = reader.seeds()
        call(reader, "warm-up", seeds[0])
        for number, data in enumerate(seeds):
            line = call(reader, f"valid {name} {number}", data)
            yield {"reader": name, **line, "as_expected": line["outcome"] == "read" or name in NEVER_READ}


def refuse() -> Iterator[dict[str, Any]]:
    """Yield the lines of poisons."""
    for title, (name, make, pattern) in poisons().items():
        data = make()
        line = call(READERS[name], title, data)
        expected = "refused" if pattern else "read"
        yield {"reader": name, **line, "as_expected": line["outcome"] == expected and re.search(pattern, line["message"]) is not None}


def fuzz(name: str, seed: int, seconds: float, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each unkept promise with a new message, and at the end one with the number of inputs."""
    reader, rng = READERS[name], random.Random(seed)
    seeds = reader.seeds()
    call(reader, "warm-up", seeds[0])
    current, seen = folder / f"{name}-current", set()
    counts = {"read": 0, "refused": 0}
    slowest, largest = 0.0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = reader.mutate(rng.choice(seeds), rng)
        current.write_bytes(data)
        line = call(reader, "", data)
        slowest, largest = max(slowest, line["cpu_s"]), max(largest, line["mb"])
        counts[line["outcome"]] = counts.get(line["outcome"], 0) + 1
        place = line["message"].rpartition(" ")[2] if line["outcome"] == "failed" else line["outcome"]
        key = line["message"].partition(":")[0], line["outcome"], place
        if line["outcome"] not in ("read", "refused") and key not in seen:
            seen.add(key)
            file = folder / f"{name}-{seed}-{len(seen):03d}"
            file.write_bytes(data)
            yield {"reader": name, **line, "input": str(file)}
    current.unlink()
    yield {"reader": name, "outcome": "summary", "inputs": sum(counts.values()), "counts": counts, "cpu_s": slowest, "mb": largest}


def main(arguments: list[str]) -> None:
    """Print the lines of a command."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    limit_memory()
    # The default action of the signal then ends the process.
    faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)
    # Garbage of one input must not count for the next, and no search for garbage may walk through the imported modules.
    gc.freeze()
    if arguments[0] == "check":
        lines = itertools.chain(read_valid(), refuse(), replay(arguments[1:]))
    else:
        lines = fuzz(arguments[1], int(arguments[2]), float(arguments[3]), Path(arguments[4]))
    for line in lines:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
