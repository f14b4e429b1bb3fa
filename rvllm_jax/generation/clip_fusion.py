"""How several views of one video give one answer: "25 clips" and what becomes of them.

At test time a video is shown once, or in several views: "25x1" are 25 starts with one crop each,
"5x5" five starts with five crops. Equal views (of a short video) are read once; w_c is how many of
the views are view c. One of two ways makes one answer of them, the same wherever a model is asked:

lock_step, the default: the views write one answer together. Every token of it is chosen from

    p(token) = sum_c w_c p_c(token) / sum_c w_c

where p_c are the next-token probabilities of view c behind its own frames, the question and the
answer so far; all views go on with the token that was chosen. `fuse` is this mean.

vote (`--fusion=vote`, `config.evaluation.fusion`): each view writes an answer of its own. The
answer that most of the views gave counts, view c counting w_c times; of equally common answers
that of the earliest view. `vote` is this choice.

A view whose frames cannot be read does not count in either.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

LOCK_STEP, VOTE = "lock_step", "vote"
FUSIONS = (LOCK_STEP, VOTE)


def fuse(logits_RV: jax.Array, weights_GCQ: jax.Array) -> jax.Array:
    """Logits [A, V] whose softmax is the weighted mean of the views' softmaxes.

    logits_RV: float[R, V] of R = G * C * Q rows: Q questions about each of G videos, each in C
    views. weights_GCQ: float32[G, C, Q], what each view counts; A = G * Q.

    Their level is the mean level of the views' logits, for the repetition penalty, which depends
    on it: equal views give the logits of one. Where all weights are 0 they count alike.
    """
    G, C, Q = weights_GCQ.shape
    if C == 1:
        return logits_RV
    logits_GCQV = logits_RV.reshape(G, C, Q, -1)
    total_G1Q = jnp.sum(weights_GCQ, axis=1, keepdims=True)
    share_GCQ1 = jnp.where(total_G1Q > 0, weights_GCQ / total_G1Q, 1 / C)[..., None]
    level_GCQ1 = jax.nn.logsumexp(logits_GCQV, axis=-1, keepdims=True)
    log_mean_GQV = jax.nn.logsumexp(logits_GCQV - level_GCQ1, axis=1, b=share_GCQ1)
    level_GQ1 = jnp.sum(jnp.where(share_GCQ1 > 0, share_GCQ1 * level_GCQ1, 0), axis=1)
    return (log_mean_GQV + level_GQ1).reshape(G * Q, -1)


def vote(answers: Sequence[str], counts: Sequence[int]) -> int:
    """The index of the answer that counts; `counts`: how many of the views each stands for.

    >>> vote(["left", "up", "up"], [1, 1, 1]), vote(["up", "left"], [2, 2]), vote("ab", [1, 3])
    (1, 0, 1)
    """
    votes: dict[str, int] = {}
    for answer, count in zip(answers, counts, strict=True):
        votes[answer] = votes.get(answer, 0) + count
    return answers.index(max(votes, key=votes.__getitem__))
