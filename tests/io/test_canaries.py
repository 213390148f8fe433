"""The search for planted credentials, by which other tests prove that no job leaves one behind."""

import base64
import secrets
import urllib.parse
from pathlib import Path

from canaries import files, find_canaries


def test_the_search_finds_every_spelling_in_a_nested_file(tmp_path: Path) -> None:
    canary = f"canary/{secrets.token_hex(8)}+="
    written = [canary, urllib.parse.quote(canary, safe=""), canary.replace("/", r"\/")]
    written += [base64.b64encode(f"{'x' * before}{canary}yz".encode()).decode() for before in range(4)]
    for number, text in enumerate(written):
        folder = tmp_path / str(number) / "deeper"
        folder.mkdir(parents=True)
        (folder / "log").write_text(f"before {text} after")
    hits = find_canaries({"planted": canary}, files(tmp_path))
    assert {Path(hit.split(" in ")[1]).parents[1].name for hit in hits} == {str(number) for number in range(len(written))}
