"""The scheduler against synthetic costs: what it picks, and how its predictions come true."""

import numpy as np
import pytest

from dspark_kernels.cost import CostTable
from dspark_kernels.scheduler import LONGEST_PAUSE, SIZES, Scheduler

REMAINING = np.full(1, 50)


def costs(per_token=0.1, fixed=8.0, draft=1.5):
    """A pass over n tokens takes fixed + per_token·n, a draft `draft`, whatever the context."""
    tokens = [1, 64, 512]
    row = [fixed + per_token * n for n in tokens]
    return CostTable({}, [64, 1024], tokens, [row, row], [1, 8], [draft, draft], [0, 0])


def scores(survival, nodes=64, batch=1):
    """Trees whose n-th best node below the root survives with probability survival^n."""
    return np.repeat(survival ** np.arange(nodes, dtype=np.float32)[None], batch, axis=0)


def test_it_picks_the_size_with_the_highest_rate():
    for survival in (0.3, 0.6, 0.8, 0.9, 0.99):
        scheduler = Scheduler(SIZES, costs(per_token=0.5))
        rates = {n: scores(survival)[0, :n].sum() / (8 + 0.5 * n + 1.5 * (n > 1)) for n in SIZES}
        best = max(rates, key=rates.get)
        assert scheduler.choose(scores(survival), REMAINING, 100) == (best, best)


def test_it_decodes_plainly_where_nothing_survives():
    scheduler = Scheduler(SIZES, costs())
    assert scheduler.choose(scores(0.0), REMAINING, 100) == (1, 1)


def test_it_grows_on_copied_text_and_shrinks_on_a_busy_batch():
    chosen = [Scheduler(SIZES, costs()).choose(scores(s), REMAINING, 100) for s in (0.1, 0.6, 0.95)]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]
    alone = Scheduler(SIZES, costs(0.5)).choose(scores(0.7), REMAINING, 100)
    busy = np.full(32, 50)
    many = Scheduler(SIZES, costs(0.5)).choose(scores(0.7, batch=32), busy, 100)
    assert many.total < 32 * alone.total


def test_a_batch_shares_its_nodes():
    """Copied text beside text nobody can foresee: the first tree is large, the second a root."""
    uneven = np.concatenate([scores(0.95), scores(0.02)])
    budget = Scheduler(SIZES, costs(0.5)).choose(uneven, np.array([50, 50]), 100)
    assert budget.total < 2 * budget.num_nodes
    even = Scheduler(SIZES, costs(0.5)).choose(scores(0.95, batch=2), np.array([50, 50]), 100)
    assert even.total > budget.total


def test_finished_requests_do_not_count():
    good_beside_hopeless = np.concatenate([scores(0.9), scores(0.5)])
    alone = Scheduler(SIZES, costs(0.5)).choose(scores(0.9), REMAINING, 100)
    beside = Scheduler(SIZES, costs(0.5)).choose(good_beside_hopeless, np.array([50, 0]), 100)
    assert beside == alone


def test_requests_that_lag_behind_count_for_more():
    copying_beside_hard = np.concatenate([scores(0.99), scores(0.3)])
    even, lagging = (
        Scheduler(SIZES, costs(0.5)).choose(copying_beside_hard, np.array(remaining), 100)
        for remaining in ([50, 50], [1, 900])
    )
    assert lagging.total < even.total


def test_plain_decoding_is_interrupted_ever_less_often():
    scheduler = Scheduler(SIZES, costs())
    drafted = []
    for step in range(200):
        if scheduler.drafts():
            drafted.append(step)
            scheduler.choose(scores(0.0), REMAINING, 100)
    gaps = np.diff(drafted).tolist()
    assert gaps == sorted(gaps) and gaps[:3] == [2, 4, 10] and gaps[-1] == LONGEST_PAUSE + 1
    while not scheduler.drafts():
        pass
    scheduler.choose(scores(0.95), REMAINING, 100)
    assert scheduler.drafts() and scheduler.drafts()


def test_the_correction_converges():
    """Scores twice too high: after some steps the predictions agree with what happens."""
    rng, scheduler = np.random.default_rng(0), Scheduler(SIZES, costs(per_token=0.05))
    promised = scores(0.9)
    predicted, observed = [], []
    for _ in range(3000):
        num_nodes, _ = scheduler.choose(promised, REMAINING, 100)
        alive = [n for n in range(1, min(num_nodes, 17)) if rng.random() < promised[0, n] / 2]
        path = promised[0, alive].tolist()
        predicted.append(1 + scheduler.observe(np.array([num_nodes]), promised, [path]))
        observed.append(1 + len(alive))
    assert np.mean(predicted[:20]) > 1.2 * np.mean(observed)
    assert np.mean(predicted[1000:]) == pytest.approx(np.mean(observed[1000:]), rel=0.05)
    assert scheduler.correction[:4] == pytest.approx(0.5, abs=0.1)


def test_a_fixed_size_needs_no_costs_and_still_predicts():
    scheduler = Scheduler((16,))
    assert scheduler.choose(scores(0.5, 16, 3), np.full(3, 50), 100) == (16, 48)
    none_accepted, all_nodes = [[]], np.array([16])
    expected = scores(0.5, 16)[0, 1:].sum()
    assert scheduler.observe(all_nodes, scores(0.5, 16), none_accepted) == pytest.approx(expected)
    assert scheduler.observe(all_nodes, scores(0.5, 16), none_accepted) < expected
    assert not Scheduler((1,)).drafts()


def test_accepted_nodes_are_counted_in_their_groups():
    scheduler = Scheduler((1, 2, 4, 8), costs())
    tree = np.array([[1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]], dtype=np.float32)
    path = tree[0, [1, 3, 7]].tolist()
    before = np.array(scheduler._all[1])
    scheduler.observe(np.array([8]), tree, [path])
    assert scheduler._all[1] - before == pytest.approx([1, 1, 1], abs=0.01)
    before = np.array(scheduler._all[1])
    scheduler.observe(np.array([4]), tree, [path[:2]])  # the last group was not verified
    assert scheduler._all[1][2] == before[2]


def test_a_text_of_its_own_kind_is_believed_and_then_forgotten():
    scheduler = Scheduler((1, 2, 4, 8), costs())
    tree, nothing = scores(0.9, 8), [[]]
    for _ in range(100):
        scheduler.observe(np.array([8]), tree, nothing)
    assert max(scheduler.correction) < 0.1
    long_run = np.divide(*scheduler._all[::-1])
    scheduler.begin(1)
    assert scheduler.correction == pytest.approx(long_run)


def test_drafts_that_hardly_pay_are_left_out():
    """Half a token in addition, for a pass and a draft half as long again: the gain is nought."""
    scheduler = Scheduler((1, 2), costs(per_token=0.0, fixed=10.0, draft=4.5))
    tree = np.array([[1.0, 0.5]], dtype=np.float32)
    drafted = 0
    for _ in range(300):
        if scheduler.drafts():
            drafted += 1
            scheduler.choose(tree, REMAINING, 100)
    assert drafted < 20


def test_costs_follow_what_steps_take():
    """A pass is as dear for 16 nodes as for 8, unlike in the table, and all take twice as long."""
    scheduler = Scheduler((1, 8, 16), costs(per_token=0.5))
    tree = scores(0.7, 16)
    assert scheduler.choose(tree, REMAINING, 100).total == 8
    for step in range(200):
        total = 16 if step % 5 == 0 else scheduler.choose(tree, REMAINING, 100).total
        scheduler.observe_seconds(1, total, 100, 2 * 13.5, True)
    assert scheduler.choose(tree, REMAINING, 100).total == 16
    assert scheduler.step_seconds(1, 16, 100, True) == pytest.approx(27, rel=0.1)


def test_one_slow_step_changes_little():
    scheduler = Scheduler(SIZES, costs())
    before = [scheduler.step_seconds(1, nodes, 100, nodes > 1) for nodes in SIZES]
    scheduler.observe_seconds(1, 16, 100, 1e4, True)
    after = [scheduler.step_seconds(1, nodes, 100, nodes > 1) for nodes in SIZES]
    assert after == pytest.approx(before, rel=0.1)


def test_one_tree_changes_the_size_only_where_it_promises_much_more():
    scheduler = Scheduler(SIZES, costs(per_token=0.5))
    usual = [scheduler.choose(scores(0.7), REMAINING, 100) for _ in range(20)][-1]
    assert scheduler.choose(scores(0.75), REMAINING, 100) == usual
    copied = scheduler.choose(scores(0.99), REMAINING, 100)
    assert copied.num_nodes > 2 * usual.num_nodes
    assert scheduler.choose(scores(0.7), REMAINING, 100).num_nodes < 2 * usual.num_nodes
    assert [scheduler.choose(scores(0.4), REMAINING, 100) for _ in range(40)][-1] < usual


def test_one_request_is_a_batch_of_one():
    """The short way for one request is the general one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        tree = np.sort(rng.random((1, 64), dtype=np.float32))[:, ::-1] ** 3
        tree[:, 0] = 1
        scheduler = Scheduler(SIZES, costs(per_token=0.5))
        scheduler.observe(np.array([24]), tree, [[]])
        tokens, _ = scheduler._shared(tree, REMAINING, list(scheduler.sizes))
        assert scheduler._alone(tree[0]) == pytest.approx(tokens, rel=1e-5)


def test_it_drafts_no_more_than_it_may_choose():
    scheduler = Scheduler(SIZES, costs(per_token=0.05))
    drafted = []
    for survival in [0.5] * 5 + [0.99] * 5 + [0.0] * 30:
        drafted.append(scheduler.draft_nodes)
        tree = scores(survival, scheduler.draft_nodes)
        budget = scheduler.choose(tree, REMAINING, 100)
        assert budget.num_nodes <= drafted[-1]
        assert scheduler.observe(np.array([budget.num_nodes]), tree, [[]]) >= 0
    assert drafted[4] == 16 and drafted[7] == 64 and drafted[-1] == 16
    assert Scheduler((5,)).draft_nodes == 5


@pytest.mark.parametrize(("batch", "first"), [(1, 64), (8, 64), (24, 48), (64, 64), (100, 100)])
def test_a_batch_starts_small(batch, first):
    """Where no score is known yet, 64 nodes of all requests, or a root each."""
    scheduler = Scheduler(SIZES, costs())
    scheduler.begin(batch)
    assert scheduler.budget.total == scheduler.budget.num_nodes * batch == first
    fixed = Scheduler((16,))
    fixed.begin(batch)
    assert fixed.budget == (16, 16 * batch)


def test_a_draft_costs_also_when_few_requests_are_left():
    """On a GPU the rows of finished requests stay: eight roots, and fewer nodes of the two left."""
    scheduler = Scheduler(SIZES, costs(draft=50.0))
    remaining = np.array([10, 10, 0, 0, 0, 0, 0, 0])
    tree = np.repeat(scores(0.6), 8, axis=0)
    for _ in range(40):
        assert scheduler.choose(tree, remaining, 100).total == 8  # a step of roots alone
