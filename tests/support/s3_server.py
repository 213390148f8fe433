"""A real S3 server on this machine, which a test may stop and start again."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

START_TIMEOUT_S = 60
END_TIMEOUT_S = 20
NO_CACHES = ["--attr-cache", "0", "--dir-entry-cache", "0"]


def find_binary() -> str | None:
    """Return the path of the juicefs program, None without one."""
    beside_python = Path(sys.executable).with_name("juicefs")
    return str(beside_python) if beside_python.exists() else shutil.which("juicefs")


class S3Server:
    """Gateway of JuiceFS, which is built on MinIO's code, with files in a folder; address and keys come from AWS_* variables."""

    def __init__(self, binary: str, folder: Path, variables: dict[str, str]) -> None:
        self.endpoint, self._log = variables["AWS_ENDPOINT_URL"], folder / "log"
        keys = {"MINIO_ROOT_USER": variables["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": variables["AWS_SECRET_ACCESS_KEY"]}
        self._environment = {**os.environ, **keys}
        meta = f"sqlite3://{folder}/meta.db"
        files = ["--storage", "file", "--bucket", f"{folder}/files/", meta, "tests", "--trash-days", "0"]
        with self._log.open("ab") as log:
            subprocess.run([binary, "format", *files], check=True, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        options = ["--multi-buckets", "--no-usage-report", "--log", f"{folder}/gateway.log", *NO_CACHES]
        self._command = [binary, "gateway", *options, meta, self.endpoint.removeprefix("http://")]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, f"no S3 server: {self._log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/minio/health/ready", timeout=2):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return False

    def stop(self) -> None:
        """End the server; its files stay."""
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def make_bucket(self) -> str:
        """Make a bucket and return its URL."""
        import boto3

        name = f"test-{uuid.uuid4().hex[:12]}"
        client = boto3.client("s3", endpoint_url=self.endpoint)
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()
        return f"s3://{name}"
