"""The parts of a checkpoint that asking a model takes, and nothing else of it."""

import jax.numpy as jnp
import numpy as np

from rvllm_jax.training.checkpoint import Checkpoints, read_model


def test_a_sound_checkpoint_is_read_without_a_warning(tmp_path, caplog):
    arrays = {
        "params": {"decoder/embed": jnp.arange(5, dtype=jnp.bfloat16)},
        "stats": {"encoder/norm/mean": jnp.ones(3)},
        "opt": {"moment": np.ones(3)},
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, arrays, {"position": {}})
    checkpoints.close()
    caplog.clear()
    params, stats, step = read_model(tmp_path)
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []
    assert step == 7 and params.keys() == arrays["params"].keys()
    for found, saved in ((params, arrays["params"]), (stats, arrays["stats"])):
        for path, array in saved.items():
            assert found[path].dtype == array.dtype
            np.testing.assert_array_equal(found[path], array)
