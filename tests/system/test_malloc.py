"""Memory that is kept causes no page faults when it is used again; in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

if platform.libc_ver()[0] != "glibc":
    pytest.skip("only glibc's malloc is told anything", allow_module_level=True)

# Page faults of a call whose result is a block of 64 MB, 16,384 pages, and is dropped.
_FAULTS = """
import resource, sys
from rvllm_jax.system.malloc import *
from rvllm_jax.system import malloc
exec(sys.argv[1])
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x + 1)
x = jnp.ones((4096, 4096))
for _ in range(30):  # until blocks that lie side by side can serve again
    step(x).block_until_ready()
each = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    each.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(each)[2])  # on a busy machine threads fault for reasons of their own
"""


def faults(first: str, **environment: str) -> int:
    command = [sys.executable, "-c", _FAULTS, first]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_call_on_cpu_takes_its_temporaries_from_what_was_kept():
    assert faults("") > 4000
    # The pipeline's own wish does not take it back.
    assert faults("keep_all_freed_memory_on_cpu(); keep_freed_memory()") < 400


def test_nothing_is_changed_where_jax_may_find_an_accelerator():
    told = "keep_all_freed_memory_on_cpu(); assert not malloc._all_is_kept"
    accelerated = "import jax; jax.config.update('jax_platforms', 'cuda,cpu'); " + told
    back = "; jax.config.update('jax_platforms', 'cpu')"
    assert faults(accelerated + back) > 4000


def test_what_the_environment_says_of_malloc_stays():
    assert faults("keep_all_freed_memory_on_cpu()", MALLOC_MMAP_THRESHOLD_="65536") > 4000
