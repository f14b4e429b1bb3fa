"""Eight virtual CPU devices for every test; a test in float64 asks for it itself."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
