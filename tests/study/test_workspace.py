"""Folder of a study: locked to its settings, those of version 0.1 included, and distinct from the folder of a run."""

import json
from dataclasses import replace

import pytest

from former_settings import former_settings
from yolor_ray.config import AugmentConfig, ClusterConfig, LossConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.presets import PLAIN, PRESETS, SMALL
from yolor_ray.config.study import AblationConfig
from yolor_ray.errors import ConfigError
from yolor_ray.io import storage
from yolor_ray.study import workspace
from yolor_ray.study.ablation import run as ablation
from yolor_ray.study.workspace import check_builtin, lock_study
from yolor_ray.train.run import train

SEARCH = ("optim.lr=0.01,0.02",)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(
        network=NetworkConfig(implicit=PLAIN),
        augment=AugmentConfig(close_mosaic_epochs=7),
        loss=LossConfig(cls=0.4),
        optim=OptimConfig(epochs=20, final_lr_ratio=0.3),
        run=RunConfig(storage=str(tmp_path), name="study"),
    )


def test_a_study_resumes_on_another_cluster_but_not_with_other_settings(config):
    lock_study("ablation", config, SEARCH)
    lock_study("ablation", replace(config, cluster=ClusterConfig(workers="2")), SEARCH)
    longer = replace(config, optim=replace(config.optim, epochs=25))
    with pytest.raises(ConfigError, match=r"study\.json: .*train\.optim\.epochs was 20 and is now 25; .* new run\.name"):
        lock_study("ablation", longer, SEARCH)
    with pytest.raises(ConfigError, match=r"search was \['optim.lr=0.01,0.02'\] and is now \[\]"):
        lock_study("ablation", config, ())
    with pytest.raises(ConfigError, match="kind was 'ablation' and is now 'search'"):
        lock_study("search", config, SEARCH)
    with pytest.raises(ConfigError, match="seed was 0 and is now 7"):
        lock_study("ablation", replace(config, run=replace(config.run, seed=7)), SEARCH)


def test_a_run_and_a_study_never_share_a_folder(config):
    lock_study("ablation", config, SEARCH)
    with pytest.raises(ConfigError, match="study: found a study of that name, expected a run or nothing"):
        train(config)
    storage.write_bytes(f"{config.run.storage}/ran/config.json", b"{}")
    with pytest.raises(ConfigError, match=r"ran: found a run of that name, expected a study or nothing; choose a new run\.name"):
        lock_study("ablation", replace(config, run=replace(config.run, name="ran")), ())


def test_builtin_weights_fit_all_networks_of_a_study_or_none():
    nano = PRESETS["nano"]
    wider, deeper = (replace(nano.network, **{name: getattr(SMALL, name)}) for name in ("widths", "depths"))
    heads = {nano.network, replace(nano.network, head="anchors"), replace(nano.network, tasks=("detect", "segment"))}
    check_builtin(nano.optim, heads)
    check_builtin(nano.optim, {wider, deeper})
    check_builtin(OptimConfig(), {nano.network, wider})
    with pytest.raises(ConfigError, match=r"'builtin', which fits the networks of 1 of 2 settings; .*--optim\.pretrained ''"):
        check_builtin(nano.optim, {nano.network, wider})


def write_study_of_version_01(config: TrainConfig, search: tuple[str, ...]) -> None:
    """Write study.json with the setting names of version 0.1."""
    content = {"kind": "ablation", "search": search, "seed": config.run.seed, "train": former_settings(config)}
    storage.write_bytes(f"{config.run.storage}/{config.run.name}/study.json", json.dumps(content).encode())


def test_a_study_of_version_01_resumes_with_the_same_settings_only(config):
    write_study_of_version_01(config, SEARCH)
    lock_study("ablation", config, SEARCH)
    lock_study("ablation", replace(config, cluster=ClusterConfig(compute_threads=3)), SEARCH)
    with pytest.raises(ConfigError, match=r"train\.loss\.cls was 0\.4 and is now 0\.5"):
        lock_study("ablation", replace(config, loss=LossConfig(cls=0.5)), SEARCH)


def test_an_ablation_of_version_01_finds_its_trials_under_former_setting_names(config, monkeypatch):
    search = ("loss.classes=0.1,0.2", "optim.lr=0.01,0.02")
    write_study_of_version_01(config, search)
    monkeypatch.setattr(ablation, "resolve_data", lambda train: (train, None, None))
    study = AblationConfig(train=config, variants=("fa-add",), seeds=1, search=search)
    for arguments in (search, ("loss.cls=0.1,0.2", "optim.lr=0.01,0.02")):
        lock_study("ablation", config, arguments)
        spec = ablation.make_specs(replace(study, search=arguments), workspace.study_folder(config))[-1]
        assert spec.run.endswith("/trials/fa-add-loss.classes=0.2-optim.lr=0.02-seed0")
        assert (spec.setting, spec.config.loss.cls) == ("loss.cls=0.2 optim.lr=0.02", 0.2)
    with pytest.raises(ConfigError, match="search was"):
        lock_study("ablation", config, ("loss.cls=0.1,0.3", "optim.lr=0.01,0.02"))


def test_the_datasets_of_a_study_are_opened_once_for_each_point(config, monkeypatch):
    opened = []
    monkeypatch.setattr(ablation, "resolve_data", lambda train: (opened.append(train.optim.lr) or train, None, None))
    study = AblationConfig(train=config, variants=("fa-add", "pr-add"), seeds=3, search=("optim.lr=0.01,0.02",))
    assert len(ablation.make_specs(study, workspace.study_folder(config))) == 18
    assert opened == [0.01, 0.02]
