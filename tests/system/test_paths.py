import pytest

from rvllm_jax.system.paths import PathError, refuse_urls


def test_a_bucket_is_refused_by_its_key_with_the_way_to_mount_it():
    named = {"--workdir": "gs://runs/a", "config.seed": 0, "config.data.videos": "data/videos"}
    named["config.model.weights"] = "weights/a, s3://weights/b"
    with pytest.raises(PathError) as refused:
        refuse_urls(named)
    told = str(refused.value)
    assert told.startswith("--workdir=gs://runs/a, config.model.weights=s3://weights/b: ")
    assert "tpu_vm.sh --bucket" in told and "hierarchical namespace" in told


def test_paths_are_not():
    refuse_urls({"--workdir": None, "a": "/data/gs:/x", "b": "runs/a:b//c", "c": "shapes", "d": ""})
