"""A real MLflow server on this machine."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 240


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Run a server with its database and artifacts in a folder; yield its URL."""
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    folder.mkdir(parents=True)
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *stores, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            ended = process.poll() is not None
            assert not ended and time.monotonic() < deadline, f"no MLflow server: {log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
    except OSError:
        return False
