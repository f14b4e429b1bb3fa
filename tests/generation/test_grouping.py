"""What is asked together, over a stand-in for a dataset: its clips, questions and views alone."""

from types import SimpleNamespace

from rvllm_jax.generation.grouping import Grouping, questions_together

VIDEOS = [0, 0, 0, 1, 2, 2]  # of each question
VIEWS = {0: ["x", "y"], 1: ["x"], 2: ["x", "y"]}
DATASET = SimpleNamespace(question_videos=VIDEOS, views=VIEWS.__getitem__)


def test_every_question_is_asked_once_behind_its_video():
    made = Grouping(DATASET, videos=2, together=2)

    def listed(shown=None):
        return [[(g.video, g.questions) for g in batch] for batch in made.batches(shown)]

    assert listed() == [[(0, (0, 1)), (0, (2,))], [(1, (3,)), (2, (4, 5))]]
    assert listed({0: 0, 5: 2}) == [[(0, (0,)), (2, (5,))]]
    assert listed({0: 1, 5: 0}) == [[(0, (5,)), (1, (0,))]]
    assert made.views == 2


def test_all_batches_have_the_same_shape():
    made = Grouping(DATASET, videos=2, together=2)
    rows = made.rows(made.batches({3: 1}))  # of the clip with one view
    assert [(row.video, tuple(row.questions)) for row in rows] == [(1, (3,))] + [(-1, ())] * 3
    assert len(made.rows(made.batches())) == 8
    centred = Grouping(DATASET, videos=2, together=2, centred=True)
    assert [row.view for row in centred.rows(centred.batches())] == [None] * 4


def test_how_many_are_together_is_between_one_and_the_most():
    assert questions_together([30] * 9, most=16) == 15  # two halves
    assert questions_together([1] * 50) == 1
    assert questions_together([3, 1], most=2) <= 2
