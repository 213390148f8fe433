"""The release folder, and the job that releases a version and goes back."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yolor_ray.config import NetworkConfig, ReleaseConfig
from yolor_ray.errors import ConfigError, NotFoundError, StorageError, WeightsError
from yolor_ray.io import manifest
from yolor_ray.io.release_folder import Event, ReleaseFolder, Releases, is_release_folder, starting_version, starting_weights
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.release.run import release

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2)
ANCHORS = torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])
V1, V2, V3 = "0001-aaaaaaaaaaaa", "0002-bbbbbbbbbbbb", "0003-cccccccccccc"


@pytest.fixture
def weights(tmp_path):
    """Make weights folders that differ."""

    def make(name, bias=0.0):
        torch.manual_seed(0)
        network = Yolor(TINY, 1, ANCHORS).eval()
        with torch.no_grad():
            network.head.levels[0].predict.bias += bias
        save_weights(str(tmp_path / name), network, WeightsInfo(name, ("thing",), 64))
        return str(tmp_path / name)

    return make


@pytest.fixture
def live(tmp_path):
    return str(tmp_path / "live")


def state(*events):
    return Releases(tuple(Event(*event) if isinstance(event, tuple) else event for event in events))


def test_a_release_copies_the_weights_and_its_event_comes_last(weights, live):
    source = weights("one")
    (Path(source) / "notes.txt").write_text("not of the weights")
    result = release(ReleaseConfig(weights=source, to=live))
    folder = ReleaseFolder(live)
    assert result == {"version": folder.read().target.version, "before": None, "to": live}
    copy = folder.version_url(result["version"])
    assert manifest.read_published(copy) == manifest.read_published(source)
    assert not (Path(copy) / "notes.txt").exists()
    assert load_weights(copy)[1].name == "one" and starting_weights(live) == copy and is_release_folder(live)


def test_versions_are_numbered_and_back_goes_one_version_back_each_time(weights, live):
    versions = [release(ReleaseConfig(weights=weights(name, bias), to=live))["version"] for bias, name in enumerate(("a", "b", "c"))]
    assert [version[:5] for version in versions] == ["0001-", "0002-", "0003-"]
    first, second, third = versions
    assert release(ReleaseConfig(to=live, back=True)) == {"version": second, "before": third, "to": live}
    assert release(ReleaseConfig(to=live, back=True)) == {"version": first, "before": second, "to": live}
    with pytest.raises(ConfigError, match=f"back: found no version before {first} in {live}, expected one that is not rejected"):
        release(ReleaseConfig(to=live, back=True))
    assert release(ReleaseConfig(weights=weights("d", 4), to=live))["before"] == first


def test_back_skips_rejected_versions_and_needs_the_weights(weights, live):
    first, second, third = (release(ReleaseConfig(weights=weights(name, bias), to=live))["version"] for bias, name in enumerate("abc"))
    folder = ReleaseFolder(live)
    folder.add(Event("rejected", second, "slow"))
    manifest.delete(folder.version_url(first))
    with pytest.raises(ConfigError, match=r"back: found no weights in .*0001"):
        release(ReleaseConfig(to=live, back=True))
    assert folder.read().before(third) == first


def test_weights_that_are_broken_are_not_released(weights, live):
    source = Path(weights("a"))
    (source / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError):
        release(ReleaseConfig(weights=str(source), to=live))
    config = json.loads((source / "config.json").read_bytes()) | {"classes": ["a", "b"]}
    tensors = (Path(weights("b")) / "weights.safetensors").read_bytes()
    manifest.publish(str(source), {"weights.safetensors": tensors, "config.json": json.dumps(config).encode()})
    with pytest.raises(WeightsError):
        release(ReleaseConfig(weights=str(source), to=live))
    assert not is_release_folder(live) and not list(Path(live).glob("versions/*"))


def test_wrong_places_are_refused(weights, live, tmp_path):
    source = weights("a")
    with pytest.raises(ConfigError, match="to: found a folder of weights or of a run"):
        release(ReleaseConfig(weights=source, to=source))
    with pytest.raises(ConfigError, match="weights: found builtin"):
        release(ReleaseConfig(weights="builtin", to=live))
    with pytest.raises(NotFoundError):
        release(ReleaseConfig(weights=str(tmp_path / "none"), to=live))
    with pytest.raises(ConfigError, match="back: found no version in"):
        release(ReleaseConfig(to=live, back=True))


@pytest.mark.parametrize("wrong", [{}, {"weights": "w", "back": True}, {"back": True, "allow_changes": True}, {"weights": "w", "to": ""}])
def test_the_settings_of_a_release_contradict_each_other(wrong):
    with pytest.raises(ConfigError, match="found"):
        ReleaseConfig(**{"to": "live", **wrong})


def test_releases_at_the_same_time_lose_none(weights, live):
    sources = [weights(f"w{number}", number) for number in range(6)]
    threads = [threading.Thread(target=release, args=[ReleaseConfig(weights=source, to=live)]) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    readers = [ReleaseFolder(live).read() for _ in range(2)]
    assert len({event.version for event in readers[0].in_effect}) == 6
    assert readers[0].target == readers[1].target


def test_the_same_events_in_any_reader_give_the_same_version():
    releases = state(("release", V1), ("release", V2), ("accepted", V2), ("release", V3))
    assert (releases.target.version, releases.start) == (V3, V2)
    assert not releases.is_proven(releases.target)
    rejected = releases.without({V3: "slow"})
    assert (rejected.target.version, rejected.rejected) == (V2, {V3: "slow"}) and rejected.is_proven(rejected.target)


def test_a_new_replica_begins_with_the_first_version_while_the_next_is_not_accepted():
    assert state(("release", V1), ("release", V2)).start == V1
    assert state(("release", V1)).is_proven(Event("release", V1))


def test_a_return_forgets_what_came_after_and_is_proven():
    releases = state(("release", V1), ("release", V2), ("release", V3), ("back", V2))
    assert [event.version for event in releases.in_effect] == [V1, V2]
    assert releases.start == V2 and releases.is_proven(releases.target) and releases.before(V2) == V1
    again = state(*releases.events, ("release", V3))
    assert again.target.version == V3 and again.before(V3) == V2 and not again.is_proven(again.target)


def test_a_folder_without_a_version_that_is_not_rejected_is_named(live):
    folder = ReleaseFolder(live)
    folder.add(Event("release", V1))
    folder.add(Event("rejected", V1, "broken"))
    with pytest.raises(StorageError, match="found no version that is not rejected"):
        starting_version(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"version": "../../secret"}', '{"version": 3}', "\x00"])
def test_an_event_that_cannot_be_used_is_left_out_and_told(live, text, caplog):
    folder = ReleaseFolder(live)
    folder.add(Event("release", V1))
    (Path(live) / "events" / "000002-release-00000000.json").write_text(text)
    (Path(live) / "events" / "note.txt").write_text("by hand")
    assert folder.read() == state(("release", V1))
    assert "event=release_event_ignored" in caplog.text
    folder.add(Event("release", V2))
    assert [event.version for event in folder.read().events] == [V1, V2]
    assert sorted(path.name[:14] for path in (Path(live) / "events").glob("0*"))[-1] == "000003-release"


def test_events_keep_their_facts(live):
    folder = ReleaseFolder(live)
    events = [Event("release", V1), Event("release", V2, allow_changes=True), Event("rejected", V2, "found 'x'\nexpected y")]
    for event in events:
        folder.add(event)
    assert ReleaseFolder(live).read().events == tuple(events)
    assert replace(events[1], allow_changes=False) != events[1]


def test_releases_live_in_a_bucket(weights, s3):
    url = f"{s3()}/live"
    version = release(ReleaseConfig(weights=weights("a"), to=url))["version"]
    second = release(ReleaseConfig(weights=weights("b", 1), to=url))["version"]
    assert starting_weights(url) == f"{url}/versions/{version}"
    assert release(ReleaseConfig(to=url, back=True)) == {"version": version, "before": second, "to": url}
