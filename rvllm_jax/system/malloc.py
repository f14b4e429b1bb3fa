"""What becomes of memory that a process frees: glibc's malloc, made to keep it.

By itself it gives large blocks back to the system at once, and whoever takes the next one pays a
page fault for every 4 KB of it: 3 to 4 microseconds on a virtual machine.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_KEPT, _LARGEST = 64 << 20, 32 << 20  # bytes; the second is the most that glibc takes
_all_is_kept = False


def keep_freed_memory() -> None:
    """Lets this process keep up to 64 MB of freed memory, where the C library is glibc.

    ArrayRecord, which reads a record's megabyte after the other, reads at 2.6 GB/s so and at 0.7
    otherwise (two AMD cores, 1.6 MB records, seconds of processor time).
    """
    if not _all_is_kept:
        _mallopt((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT))


def keep_all_freed_memory_on_cpu() -> None:
    """Lets this process keep all that it frees, where JAX will compute on CPU; at its start.

    On CPU, XLA takes the temporaries of every call as one new block. A step of the tiny recipe has
    200 MB of them: 51,000 page faults, which were a fifth of its processor time. It must come
    before JAX makes its threads, since blocks of threads with an arena of their own are never kept.
    In exchange the process grows larger, by 0.15 GB of 1.1 there and by a third at 3.3 GB. A
    variable of malloc's in the environment (MALLOC_ARENA_MAX, ...) leaves all as it says.
    """
    global _all_is_kept
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if not _all_is_kept and not chosen and not _accelerated():
        _mallopt((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
        _all_is_kept = True


def _accelerated() -> bool:
    """Whether JAX may find a GPU or a TPU; it is not asked, since then it makes its threads."""
    import jax  # not for the processes that read: they do without

    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def _mallopt(*options: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options:
            mallopt(option, value)
