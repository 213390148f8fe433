"""New versions of a release folder on a running replica: shadow, share, all requests, rejection and the way back, over real HTTP."""

import base64
import contextlib
import gc
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
import torch

from exported import export_weights
from http_server import served
from red_engine import RedEngine, encode_image, serve_settings
from yolor_ray.config import NetworkConfig, ReleaseConfig
from yolor_ray.errors import ConfigError, StorageError, WeightsError
from yolor_ray.inference.detect import Detections
from yolor_ray.io.release_folder import Event, ReleaseFolder
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, weights_files
from yolor_ray.release.run import release
from yolor_ray.serve import engine as engine_module
from yolor_ray.serve.deployment import start_service
from yolor_ray.serve.engine import DetectOptions, TimedDetections
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.rollout import comparison, models, rollout
from yolor_ray.serve.rollout.models import Stage
from yolor_ray.serve.rollout.rollout import Rollout

JPEG = encode_image()
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2)
V1, V2, V3 = "0001-aaaaaaaaaaaa", "0002-bbbbbbbbbbbb", "0003-cccccccccccc"


class Versions:
    """Versions in a memory without limit, loaded by a function."""

    def __init__(self, load):
        self._load = load

    def load(self, version, is_proven):
        return self._load(version)

    def promote(self):
        pass

    drop = close = promote


def rollout_of(service, folder, load, *clock):
    return Rollout(service, service.models, folder, Versions(load), *clock)


class BlindEngine(RedEngine):
    """Engine that finds nothing."""

    def _detect(self, view, options):
        boxes = torch.zeros(0, 4)
        return TimedDetections(Detections(boxes, torch.zeros(0), torch.zeros(0, dtype=torch.long)), super()._detect(view, options).seconds)


class FailingEngine(RedEngine):
    """Engine that fails when it has answered 25 batches: after the shadow, during the share."""

    def detect(self, images):
        if len(self.batches) == 25:
            raise ValueError("broken")
        return super().detect(images)


class SlowEngine(RedEngine):
    """Engine that takes 30 ms more."""

    def _detect(self, view, options):
        time.sleep(0.03)
        result = super()._detect(view, options)
        return replace(result, seconds=result.seconds + 0.03)


@pytest.fixture(autouse=True)
def small_stages(monkeypatch):
    monkeypatch.setattr(rollout, "SHADOW_IMAGES", 20)
    monkeypatch.setattr(rollout, "SHARE_IMAGES", 40)
    monkeypatch.setattr(rollout, "PAUSES", 0)
    monkeypatch.setattr(comparison, "ENOUGH_IMAGES", 50)
    monkeypatch.setattr(comparison, "ENOUGH_BOXES", 20)


@pytest.fixture
def folder(tmp_path):
    folder = ReleaseFolder(str(tmp_path / "live"))
    folder.add(Event("release", V1))
    return folder


@contextlib.contextmanager
def replica(folder, engines):
    """Serve the engine of V1, and yield the replica; its rollout moves when `poll` and `traffic` are called."""

    def load(version):
        loaded.append(version)
        if isinstance(engines[version], Exception):
            raise engines[version]
        return engines[version]

    loaded, now = [], [0.0]
    with served(engines[V1], V1) as client:
        # A client of its own per replica, so that other versions of its folder are loaded from the same engines.
        follower = rollout_of(client.service, ReleaseFolder(folder.url), load, lambda: now[0])

        def traffic(count):
            """Return the release of each answer."""
            answers = []
            for _ in range(count):
                answer = client.post(JPEG)
                assert answer.status_code == 200
                answers.append(answer.json()["model"]["release"])
                follower.advance(0)
            return answers

        def wait(seconds):
            now[0] += seconds
            follower.advance(0)

        names = {"client": client, "rollout": follower, "poll": follower.poll, "traffic": traffic, "wait": wait, "loaded": loaded}
        yield SimpleNamespace(**names, models=client.service.models)


def released(folder, version, **options):
    folder.add(Event("release", version, **options))
    return version


def rejection(folder, version):
    return folder.read().rejected.get(version)


def accepted(folder):
    return [event.version for event in folder.read().events if event.kind == "accepted"]


def test_a_version_is_shadowed_then_has_a_share_then_all_requests(folder):
    engines = {V1: RedEngine(), V2: RedEngine()}
    with replica(folder, engines) as one:
        one.poll()
        assert one.loaded == [] and set(one.traffic(3)) == {V1}
        released(folder, V2)
        one.poll()
        assert one.loaded == [V2]
        shadow, share, everything = one.traffic(20), one.traffic(20), one.traffic(10)
        assert set(shadow) == {V1} and Counter(share) == {V1: 15, V2: 5} and set(everything) == {V2}
        assert len(engines[V2].batches) >= 50
        assert one.models.stable.release == V2 and one.models.candidate is None and accepted(folder) == [V2]
        one.poll()
        assert one.loaded == [V2] and rejection(folder, V2) is None
        text = one.client.get("/metrics").text
        assert f'yolor_version_requests_total{{model="fake",replica="replica-1",version="{V2}"}} 15.0' in text


def test_old_weights_are_released_when_the_new_version_is_accepted(folder):
    """Without a garbage collection: the memory of a GPU must be free for the next version."""
    engines = {V1: RedEngine(), V2: RedEngine()}
    with replica(folder, engines) as one:
        old = weakref.ref(one.models.stable)
        released(folder, V2)
        one.poll()
        one.traffic(49)
        assert old() is not None and one.models.current.release == V2
        gc.disable()
        try:
            one.traffic(3)
            assert old() is None
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WeightsError("w: found no tensors, expected some"), "loading: w: found no tensors, expected some"),
        (RuntimeError("no memory"), "loading: found RuntimeError: no memory, expected weights that can be loaded"),
    ],
)
def test_a_version_that_cannot_be_loaded_is_rejected_and_gets_no_request(folder, error, reason, caplog):
    with replica(folder, {V1: RedEngine(), V2: error}) as one:
        released(folder, V2)
        one.poll()
        assert set(one.traffic(5)) == {V1} and one.models.candidate is None
        one.poll()
        assert one.loaded == [V2]
    assert rejection(folder, V2) == reason
    assert f"event=version_rejected model=fake version={V2} serves={V1} reason='{reason}'" in caplog.text


def test_weights_that_cannot_be_read_now_are_read_again_and_not_rejected(folder, caplog):
    engines = {V1: RedEngine(), V2: StorageError("s3://b: no answer")}
    with replica(folder, engines) as one:
        released(folder, V2)
        one.poll()
        one.poll()
        assert one.loaded == [V2] and "event=version_not_loaded" in caplog.text
        engines[V2] = RedEngine()
        one.wait(rollout.RETRY_S)
        one.poll()
        assert one.loaded == [V2, V2] and one.models.candidate.release == V2
    assert rejection(folder, V2) is None


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (BlindEngine(), "detections per image: found 0.00, expected 0.50 to 2.00"),
        (SlowEngine(), "latency: found a median of "),
    ],
)
def test_a_version_that_finds_nothing_or_is_slow_is_rejected_before_it_answers(folder, engine, reason):
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        assert set(one.traffic(30)) == {V1}
        assert one.models.candidate is None
    assert rejection(folder, V2).startswith(reason) and rejection(folder, V2).endswith("(16 images)")


def test_a_version_that_would_hold_up_requests_is_rejected_before_its_comparison(folder):
    class StallingEngine(RedEngine):
        def _detect(self, view, options):
            return replace(super()._detect(view, options), seconds=60.0)

    engine = StallingEngine()
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        assert one.models.candidate is None and len(engine.batches) == 1
    assert rejection(folder, V2) == "latency: found 60.00 s for an image, expected at most 0.10 s"


def test_a_release_is_the_way_out_of_a_version_that_fails(folder, caplog):
    engine = RedEngine()
    with replica(folder, {V1: engine, V2: RedEngine()}) as one:
        engine.failure = ValueError("broken")
        released(folder, V2)
        one.poll()
        one.client.service.models.sample(JPEG, DetectOptions(0.5, 0.5, 10))
        for _ in range(2):
            one.wait(rollout.STAGE_LIMIT_S)
        assert "event=image_not_compared" in caplog.text and set(one.traffic(3)) == {V2}
    assert rejection(folder, V2) is None


def test_the_thread_of_the_rollout_survives_a_failure(folder, monkeypatch, caplog):
    monkeypatch.setattr(rollout, "POLL_S", 0.01)
    failures = [ValueError("a bug")]
    poll = Rollout.poll
    monkeypatch.setattr(Rollout, "poll", lambda self: (_ for _ in ()).throw(failures.pop()) if failures else poll(self))
    released(folder, V2)
    with served(RedEngine(), V1) as client:
        rollout_of(client.service, folder, lambda version: RedEngine()).start()
        deadline = time.monotonic() + 10
        while client.service.models.candidate is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "event=rollout_failed" in caplog.text and "a bug" in caplog.text


def test_allowed_changes_are_no_reason_for_a_rejection(folder):
    with replica(folder, {V1: RedEngine(), V2: BlindEngine()}) as one:
        released(folder, V2, allow_changes=True)
        one.poll()
        one.traffic(50)
        assert one.models.stable.release == V2


def test_a_version_that_fails_in_the_comparison_is_rejected_before_it_answers(folder):
    engine = RedEngine()
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        engine.failure = ValueError("broken")
        assert set(one.traffic(2)) == {V1}
    assert rejection(folder, V2) == "comparison: found ValueError: broken, expected detections"


def test_a_version_that_fails_on_its_first_image_is_rejected(folder):
    engine = RedEngine()
    engine.failure = ValueError("broken")
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        assert one.models.candidate is None
    assert rejection(folder, V2) == "loading: found ValueError: broken, expected weights that can be loaded"


@pytest.mark.parametrize("kind", ["image", "batch", "tensors"])
def test_a_request_on_which_the_new_version_fails_is_answered_by_the_one_before(folder, kind):
    engine = RedEngine()
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        one.traffic(40)
        assert one.models.current.release == V2
        engine.failure = ValueError("broken")
        if kind == "image":
            answer = one.client.post(JPEG)
            assert answer.json()["model"]["release"] == V1 and len(answer.json()["detections"]) == 1
        elif kind == "batch":
            files = [("file", (f"{name}.jpg", JPEG)) for name in "abc"]
            answer = requests.post(f"{one.client.base}/v1/detect/batch", files=files, timeout=10)
            assert answer.json()["model"]["release"] == V1
            assert [len(result["detections"]) for result in answer.json()["results"]] == [1, 1, 1]
        else:
            tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(JPEG).decode()]}
            answer = requests.post(f"{one.client.base}/v2/models/fake/infer", json={"inputs": [tensor]}, timeout=10)
        assert answer.status_code == 200
        assert set(one.traffic(3)) == {V1}
    assert rejection(folder, V2) == "found ValueError: broken in a request, expected an answer"


def test_a_request_may_name_the_version_that_answers_it_as_long_as_that_is_loaded(folder):
    engine = RedEngine()
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:

        def ask(version):
            answer = one.client.post(JPEG, query=f"?release={version}")
            return answer.json()["model"]["release"] if answer.ok else (answer.status_code, answer.json()["message"])

        refused = f"release: found '{V2}', expected one of the loaded versions "
        assert (ask(V1), ask(V2)) == (V1, (422, refused + V1))
        released(folder, V2)
        one.poll()
        assert (ask(V1), ask(V2)) == (V1, V2), "a version in shadow answers who asks for it"
        files = [("file", ("a.jpg", JPEG))]
        batch = requests.post(f"{one.client.base}/v1/detect/batch?release={V2}", files=files, timeout=10)
        assert batch.json()["model"]["release"] == V2
        tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(JPEG).decode()]}
        body = {"inputs": [tensor], "parameters": {"release": V2}}
        infer = requests.post(f"{one.client.base}/v2/models/fake/infer", json=body, timeout=10)
        assert infer.json()["parameters"] == {"release": V2}
        engine.failure = ValueError("broken")
        assert ask(V2) == (422, refused + V1), "nobody else's answer"
        assert set(one.traffic(3)) == {V1}


def test_a_failed_answer_is_charged_once_to_the_key(folder, tmp_path):
    import hashlib

    keys = tmp_path / "keys"
    keys.write_text(f"lab sha256:{hashlib.sha256(b'word').hexdigest()} megapixels_per_s=0.03")
    engine = RedEngine()
    with served(RedEngine(), V1, api_keys=str(keys)) as client:
        broken = client.service.add_model(engine, V2)
        engine.failure = ValueError("broken")
        client.service.models.start(broken)
        client.service.models.give(broken, 1.0)
        assert client.post(JPEG, **{"X-API-Key": "word"}).json()["model"]["release"] == V1
        assert client.post(JPEG, **{"X-API-Key": "word"}).status_code == 200


def test_a_version_may_have_another_input_and_other_classes(folder, caplog):
    engine = RedEngine(classes=("blue", "red"))
    engine.info = replace(engine.info, image_px=96)
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        assert "event=version_classes_differ" in caplog.text and "removed='' added='blue'" in caplog.text
        # The new version calls the red rectangle blue, its first class.
        one.traffic(20)
    assert rejection(folder, V2).startswith("detections per image: found 0.00")


def test_a_version_with_fewer_tasks_is_rejected(folder):
    tasks = ("detect", "classify", "embed", "segment", "pose")
    with replica(folder, {V1: RedEngine(tasks=tasks), V2: RedEngine(), V3: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        assert rejection(folder, V2).startswith("tasks: found detect, expected also classify, embed, segment, pose")
        released(folder, V3, allow_changes=True)
        one.poll()
        assert one.models.candidate.release == V3


def test_a_service_without_requests_comes_to_the_version_and_goes_on_comparing(folder):
    with replica(folder, {V1: RedEngine(), V2: BlindEngine(), V3: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        one.wait(rollout.STAGE_LIMIT_S - 1)
        assert one.rollout._trial.stage is Stage.SHADOW
        one.wait(1)
        assert one.rollout._trial.stage is Stage.SHARE
        one.wait(rollout.STAGE_LIMIT_S)
        assert one.models.current.release == V2 and one.models.stable.release == V1 and accepted(folder) == []
        # The first images that come show that it finds nothing, and the version before is still loaded.
        assert set(one.traffic(15)) == {V2} and one.loaded == [V2]
        one.traffic(1)
        assert rejection(folder, V2).startswith("detections per image") and set(one.traffic(5)) == {V1}
        released(folder, V3)
        one.poll()
        one.wait(rollout.STAGE_LIMIT_S)
        one.wait(rollout.STAGE_LIMIT_S)
        one.traffic(50)
        assert one.models.stable.release == V3 and accepted(folder) == [V3]


def test_going_back_is_immediate(folder):
    with replica(folder, {V1: RedEngine(), V2: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        one.traffic(50)
        folder.add(Event("back", V1))
        one.poll()
        assert set(one.traffic(3)) == {V1} and one.models.candidate is None and one.loaded == [V2, V1]


def test_going_back_during_the_comparison_drops_the_new_version_without_loading(folder):
    with replica(folder, {V1: RedEngine(), V2: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        one.traffic(25)
        folder.add(Event("back", V1))
        one.poll()
        assert set(one.traffic(5)) == {V1} and one.models.candidate is None and one.loaded == [V2]


def test_a_later_release_takes_the_place_of_the_one_under_comparison(folder):
    with replica(folder, {V1: RedEngine(), V2: RedEngine(), V3: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        one.traffic(25)
        released(folder, V3)
        one.poll()
        assert one.models.candidate.release == V3 and set(one.traffic(20)) == {V1}
        one.traffic(30)
        assert one.models.stable.release == V3


def test_other_replicas_follow_a_judgement(folder):
    engines = {V1: RedEngine(), V2: BlindEngine(), V3: RedEngine()}
    with replica(folder, engines) as one, replica(folder, engines) as other:
        released(folder, V2)
        one.poll()
        other.poll()
        assert other.models.candidate.release == V2
        one.traffic(16)
        other.poll()
        assert other.models.candidate is None and set(other.traffic(2)) == {V1}
        released(folder, V3)
        one.poll()
        other.poll()
        one.traffic(50)
        other.poll()
        assert other.models.stable.release == V3 and set(other.traffic(2)) == {V3}
        assert accepted(folder) == [V3]


def test_a_version_that_another_replica_rejects_later_is_left(folder):
    with replica(folder, {V1: RedEngine(), V2: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        one.traffic(50)
        folder.add(Event("rejected", V2, "slow elsewhere"))
        one.poll()
        assert set(one.traffic(2)) == {V1} and one.loaded == [V2, V1]


def test_a_folder_that_cannot_be_read_changes_nothing(folder, monkeypatch, caplog):
    with replica(folder, {V1: RedEngine(), V2: RedEngine()}) as one:
        released(folder, V2)

        def refuse(url):
            raise StorageError(f"{url}: no answer")

        with monkeypatch.context() as patch:
            patch.setattr("yolor_ray.io.storage.list_names", refuse)
            one.poll()
        assert "event=releases_unreadable" in caplog.text and set(one.traffic(2)) == {V1}
        one.poll()
        assert one.models.candidate.release == V2


def test_a_rejection_that_cannot_be_written_counts_here_and_is_written_later(folder, monkeypatch, caplog):
    with replica(folder, {V1: RedEngine(), V2: WeightsError("cut")}) as one:
        released(folder, V2)
        with monkeypatch.context() as patch:
            patch.setattr(ReleaseFolder, "add", lambda *_: (_ for _ in ()).throw(StorageError("s3://b: refused")))
            one.poll()
            one.poll()
        assert one.loaded == [V2] and rejection(folder, V2) is None and "event=version_not_recorded" in caplog.text
        one.poll()
        assert one.loaded == [V2] and "cut" in rejection(folder, V2)


def test_the_description_of_the_model_names_the_release(folder):
    with replica(folder, {V1: RedEngine()}) as one:
        assert one.client.get("/v1/model").json()["release"] == V1
    with served(RedEngine()) as client:
        assert "release" not in client.get("/v1/model").json()
        assert "release" not in client.post(JPEG).json()["model"]


def test_the_comparisons_of_other_models_put_off_those_of_this_one(folder):
    engine = RedEngine()
    with replica(folder, {V1: RedEngine(), V2: engine}) as one:
        released(folder, V2)
        one.poll()
        one.client.service.compare_at_s = time.monotonic() + 600
        one.traffic(5)
        assert len(engine.batches) == 1
        one.client.service.compare_at_s = time.monotonic()
        one.traffic(1)
        assert len(engine.batches) == 2


def test_images_for_the_comparison_never_pile_up(folder):
    with replica(folder, {V1: RedEngine(), V2: RedEngine()}) as one:
        released(folder, V2)
        one.poll()
        for _ in range(10):
            one.client.post(JPEG)
        assert one.models._samples.qsize() == models.MAX_SAMPLES


def test_no_request_fails_under_load_while_versions_come_fail_and_go(folder, monkeypatch):
    """Six clients ask without a pause, while the rollout takes a good, a broken, a blind and a failing version, and goes back."""
    monkeypatch.setattr(rollout, "POLL_S", 0.05)
    # The clients are threads of this process, and take turns of 5 ms from an engine of 2 ms.
    monkeypatch.setattr(comparison, "SLOWDOWN_S", 1.0)
    names = [f"{number:04d}-{'d' * 12}" for number in range(2, 7)]
    good, broken, blind, failing, last = names
    engines = {V1: RedEngine(), good: RedEngine(), broken: WeightsError("cut"), blind: BlindEngine(), last: RedEngine()}
    engines[failing] = FailingEngine()

    def load(version):
        if isinstance(engines[version], Exception):
            raise engines[version]
        return engines[version]

    def wait_until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    answers, stopped = [], threading.Event()
    with served(engines[V1], V1, max_queued=64) as client, ThreadPoolExecutor(6) as pool:

        def ask():
            with requests.Session() as session:
                while not stopped.is_set():
                    answer = session.post(f"{client.base}/v1/detect", data=JPEG, headers={"Content-Type": "image/jpeg"}, timeout=20)
                    boxes = len(answer.json().get("detections", ()))
                    answers.append((answer.status_code, answer.json().get("model", {}).get("release"), boxes))

        clients = [pool.submit(ask) for _ in range(6)]
        try:
            rollout_of(client.service, folder, load).start()
            stable = lambda: client.service.models.stable.release  # noqa: E731
            released(folder, good)
            wait_until(lambda: stable() == good)
            for version in (broken, blind, failing):
                released(folder, version)
                wait_until(lambda version=version: rejection(folder, version))
            folder.add(Event("back", V1))
            wait_until(lambda: stable() == V1)
            released(folder, last)
            wait_until(lambda: stable() == last)
        finally:
            stopped.set()
    for done in clients:
        done.result()
    assert len(answers) > 200 and {status for status, *_ in answers} == {200} and {boxes for *_, boxes in answers} == {1}
    assert {V1, good, last} <= {release for _, release, _ in answers} and not {broken, blind} & {release for _, release, _ in answers}


@pytest.fixture
def real_versions(tmp_path):
    """Release two real networks: one, and one whose predictions are not finite; return the folder."""
    folder = ReleaseFolder(str(tmp_path / "cars"))
    for number, variance in enumerate((1.0, -1.0)):
        torch.manual_seed(0)
        network = Yolor(TINY, 1, torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])).eval()
        for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_var.fill_(variance)
        folder.add(Event("release", folder.publish(weights_files(network, WeightsInfo(f"run-{number}", ("thing",), 64)))))
    return folder


def test_a_service_of_a_release_folder_follows_it_with_real_weights(real_versions, monkeypatch):
    monkeypatch.setattr(rollout, "POLL_S", 0.05)
    first, second = (event.version for event in real_versions.read().events)
    service = start_service(serve_settings(weights=real_versions.url, engine="torch"), ServiceMetrics())
    # The name is that of the folder, so that the paths of the model stay.
    stable = service.models.stable
    assert stable.identity == {"name": "cars", "version": stable.info.version, "release": first}
    deadline = time.monotonic() + 30
    while not (reason := real_versions.read().rejected.get(second)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reason.startswith("loading: ") and "values that are not finite on a built-in scene, expected numbers" in reason
    assert service.models.stable is stable and service.models.candidate is None


def test_a_service_of_weights_takes_the_release_of_their_export(tmp_path, real_versions, monkeypatch):
    monkeypatch.setattr(rollout, "POLL_S", 0.05)
    weights = real_versions.version_url(real_versions.read().events[0].version)
    live = str(tmp_path / "live")
    for source in (weights, export_weights(weights, str(tmp_path / "export"), "onnx")):
        version = release(ReleaseConfig(weights=source, to=live))["version"]
    service = start_service(serve_settings(weights=live, engine="fastest"), ServiceMetrics())
    deadline = time.monotonic() + 30
    while service.models.candidate is None:
        assert ReleaseFolder(live).read().rejected == {} and time.monotonic() < deadline
        time.sleep(0.05)
    assert (service.models.candidate.release, service.models.candidate.engine.name) == (version, "onnxruntime")


def test_weights_without_a_release_folder_have_no_release(real_versions):
    url = real_versions.version_url(real_versions.read().events[0].version)
    assert start_service(serve_settings(weights=url, engine="torch"), ServiceMetrics()).models.stable.release == ""


def test_a_version_takes_the_engine_of_the_one_before_where_it_runs_it(monkeypatch):
    asked = []

    class Loaded:
        info = RedEngine().info

        def __init__(self, settings):
            asked.append(settings.engine)
            if settings.engine == "openvino":
                raise ConfigError("engine: found openvino")

    monkeypatch.setattr(engine_module, "LocalEngine", Loaded)
    assert engine_module.load_version(serve_settings(), "url", "cars", "onnxruntime").info.name == "cars"
    engine_module.load_version(serve_settings(), "url", "cars", "openvino")
    engine_module.load_version(serve_settings(), "url", "cars")
    engine_module.load_version(serve_settings(engine="torch"), "url", "cars", "onnxruntime")
    assert asked == ["onnxruntime", "openvino", "fastest", "fastest", "torch"]
    with pytest.raises(ConfigError):
        engine_module.load_version(serve_settings(engine="openvino"), "url", "cars", "torch")
