"""What others published on the benchmarks, each number with its judge, its split and its source.

Only numbers that were found where `source` says. A judge that is named without its date is named so
there: the same name has stood for models that differ by several points (FreeVA, arXiv 2405.07798).
"""

from typing import NamedTuple

from rvllm_jax.evaluation.answers.questions import TEXT_GENERATION

_GPT = "gpt-3.5-turbo, version not stated"
_CHATGPT = "Maaz et al. 2023, arXiv 2306.05424"
_LLAVA = "Lin et al. 2023, arXiv 2311.10122"
_RESNETVLLM = "Khalil et al. 2025, arXiv 2504.14432"
_SILENT = "not stated"
# Video-ChatGPT's authors, in their repository (issue 65): validation of MSVD and MSRVTT, test of
# TGIF. Who followed its protocol does not say which files were used.
_LIKE_CHATGPT = "not stated; Video-ChatGPT's protocol"


class PublishedScore(NamedTuple):
    """What one model reached on one benchmark; None where a value is not published.

    values: accuracy in % and score of 0 to 5; of text generation 0 to 5 each: CI, DO, CU, TU, C and
    their mean.
    """

    model: str
    benchmark: str
    values: tuple[float | None, ...]
    judge: str
    split: str
    source: str


PUBLISHED_SCORES = tuple(PublishedScore(*row) for row in (
    ("Video-ChatGPT", "msvd_qa", (64.9, 3.3), _GPT, "validation", _CHATGPT),
    ("Video-ChatGPT", "msrvtt_qa", (49.3, 2.8), _GPT, "validation", _CHATGPT),
    ("Video-ChatGPT", "tgif_frameqa", (51.4, 3.0), _GPT, "test", _CHATGPT),
    ("Video-ChatGPT", "activitynet_qa", (35.2, 2.7), _GPT, "test", _CHATGPT),
    ("Video-LLaVA", "msvd_qa", (70.7, 3.9), _GPT, _LIKE_CHATGPT, _LLAVA),
    ("Video-LLaVA", "msrvtt_qa", (59.2, 3.5), _GPT, _LIKE_CHATGPT, _LLAVA),
    ("Video-LLaVA", "tgif_frameqa", (70.0, 4.0), _GPT, _LIKE_CHATGPT, _LLAVA),
    ("Video-LLaVA", "activitynet_qa", (45.3, 3.3), _GPT, _LIKE_CHATGPT, _LLAVA),
    ("ResNetVLLM", "msvd_qa", (78.3, None), _SILENT, _SILENT, _RESNETVLLM),
    ("ResNetVLLM", "msrvtt_qa", (63.5, None), _SILENT, _SILENT, _RESNETVLLM),
    ("ResNetVLLM", "tgif_frameqa", (59.9, None), _SILENT, _SILENT, _RESNETVLLM),
    ("ResNetVLLM", "activitynet_qa", (54.8, None), _SILENT, _SILENT, _RESNETVLLM),
    ("Video-ChatGPT", TEXT_GENERATION, (2.40, 2.52, 2.62, 1.98, 2.37, 2.38), _GPT, "test",
     _CHATGPT),
    ("Video-LLaVA", TEXT_GENERATION, (2.87, 2.94, 3.44, 2.45, 2.51, 2.84), _GPT, "test",
     "as reported by LLaVA-Mini, arXiv 2501.03895"),
    ("ResNetVLLM", TEXT_GENERATION, (None, None, None, None, None, 3.55), _SILENT, _SILENT,
     _RESNETVLLM),
))  # fmt: skip
