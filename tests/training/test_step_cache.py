import jax

from rvllm_jax.training.step import keep_programs


def test_compiled_programs_are_kept_and_found_again(tmp_path):
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    found = []

    def tell(event, **_):
        found.append(event)

    jax.monitoring.register_event_listener(tell)
    try:
        keep_programs(str(tmp_path))
        for _ in range(2):
            jax.clear_caches()
            jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
        assert list(tmp_path.iterdir())
        assert "/jax/compilation_cache/cache_hits" in found
    finally:
        jax.monitoring.unregister_event_listener(tell)
        for key, value in before.items():
            jax.config.update(key, value)
