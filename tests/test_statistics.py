"""What the loop counts, and the numbers made of it."""

from dspark_kernels.statistics import Results, Statistics


def test_requests_end_at_their_stop_token_or_limit():
    seen = []
    results = Results([3, 5], 4, [9], lambda request, tokens: seen.append((request, tokens)))
    results.add_first([1, 2])
    assert results.remaining.tolist() == [3, 3] and results.context == 5.0
    results.add_step([0, 1], [[7, 8, -1], [9, 4, 4]], counts=[2, 3], nodes=[5, 6])
    assert results.running.tolist() == [True, False]
    assert results.remaining.tolist() == [1, 0] and results.context == 6.0
    results.add_step([0, 1], [[3, 3], [4, -1]], counts=[2, 1], nodes=[5, 6])
    assert results.finished and results.tokens == [[1, 7, 8, 3], [2, 9]]
    assert seen == [(0, [1]), (1, [2]), (0, [7, 8]), (1, [9]), (0, [3])]
    statistics = results.statistics
    assert (statistics.steps, statistics.steps_of_batch) == (3, 2)
    assert (statistics.tokens, statistics.nodes) == (4, 16)
    assert statistics.accepted == [0, 2, 1]  # those behind the end as well


def test_requests_end_where_their_caller_says_so():
    asked = []

    def stop_when(request, tokens):
        asked.append((request, *tokens))
        return tokens[-1] == 8

    results = Results([3, 5], 5, [9], None, stop_when)
    results.add_first([1, 2])
    results.add_step([0, 1], [[7, 8, 6], [9, 4, 4]], counts=[3, 3], nodes=[5, 6])
    assert results.finished and results.tokens == [[1, 7, 8], [2, 9]]
    assert results.stopped == [0] and results.lengths.tolist() == [6, 7]
    assert asked == [(0, 1), (1, 2), (0, 1, 7), (0, 1, 7, 8), (1, 2, 9)]
    assert results.statistics.tokens == 3


def test_numbers_made_of_counts():
    statistics = Statistics()
    assert statistics.tokens_per_step == statistics.tokens_per_second == 0
    for emitted, accepted, nodes in ((1, 0, 4), (3, 2, 8), (2, 2, 8), (4, 3, 12)):
        statistics.record(emitted, accepted, nodes)
    statistics.decode_seconds = 0.5
    for nodes, predicted, observed in ((8, 3.0, 4.0), (24, 5.0, 4.0), (8, 4.0, 4.0)):
        statistics.record_choice(nodes, predicted, observed, seconds=0.125)
    numbers = statistics.as_dict()
    assert numbers["tokens_per_step"] == 2.5 and numbers["nodes_per_step"] == 8
    assert numbers["tokens_per_second"] == 20
    assert numbers["accepted_histogram"] == [1, 0, 2, 1]
    assert numbers["acceptance_by_depth"] == [0.75, 0.75, 0.25]
    assert numbers["predicted_tokens_per_step"] == numbers["observed_tokens_per_step"] == 3
    assert numbers["choices"][8] == {
        "steps": 2, "predicted_tokens": 3.5, "observed_tokens": 4.0, "seconds": 0.125,
        "predicted_tokens_per_second": 28.0,
    }  # fmt: skip
    assert numbers["choices"][24]["predicted_tokens_per_second"] == 40
