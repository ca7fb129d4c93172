"""How large the actor pool of a job is."""

from stetholm.evaluation.generation import CALLS_TOGETHER, Pool
from stetholm.settings import EngineSettings


def test_replicas_are_bounded_by_the_settings_and_the_work(storage, ray_cluster):
    few = Pool("s3://x/y", storage, max_batch=4, engine="transformers", max_replicas=1)
    assert few.size(questions=100, answers=100) == (1, 4)
    many = Pool("s3://x/y", storage, max_batch=4, engine="transformers", max_replicas=50)
    assert many.size(questions=100, answers=500) == (50, 1)
    assert many.size(questions=3, answers=15) == (3, 1)


def test_all_candidates_of_a_question_are_in_one_batch(storage, ray_cluster):
    """A call's answers fit one batch, so that no question's K are cut apart and its prompt is computed once."""
    pool = Pool("s3://x/y", storage, max_batch=32, engine="transformers", max_replicas=1)
    for candidates in (2, 5, 7, 32):
        _, questions = pool.size(questions=100, answers=100 * candidates)
        assert questions * candidates <= 32


def test_vllm_gets_more_a_call_than_it_computes_together(storage, ray_cluster):
    pool = Pool("s3://x/y", storage, engine="vllm", limits=EngineSettings(max_num_seqs=10), max_replicas=2)
    assert pool.size(questions=1000, answers=5000) == (2, CALLS_TOGETHER * 10 // 5)
