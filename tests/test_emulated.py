"""The emulated device finds what would be wrong on a GPU: each test makes one such mistake."""

import pytest
import torch

pytestmark = [pytest.mark.cuda, pytest.mark.emulated]


def captured(function):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


def test_tensors_of_two_devices(device):
    here, there = torch.ones(3, device=device), torch.ones(3)
    with pytest.raises(RuntimeError, match="aten::add: tensors on cpu and cuda"):
        here + there
    with pytest.raises(RuntimeError, match="dspark::accept_tree: tensors on cpu and cuda"):
        torch.ops.dspark.accept_tree(
            torch.zeros(1, 1, dtype=torch.int64, device=device),
            torch.full((1, 1), -1, dtype=torch.int32), torch.ones(1, dtype=torch.int32),
            torch.zeros(1, 1, dtype=torch.int64), [], torch.zeros(1, dtype=torch.int32), None, 0,
        )  # fmt: skip
    assert (here + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number may come from the host


@pytest.mark.parametrize(
    "read", [lambda x: x[0].item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: bool(x[0])]
)
def test_a_capture_that_waits(read, device):
    x = torch.ones(3, device=device)
    read(x)
    with pytest.raises(RuntimeError, match="a capture must not wait for the device"):
        captured(lambda: read(x + 1))


def test_results_read_too_early(device):
    x, event = torch.arange(3, device=device), torch.cuda.Event()
    first = x.to("cpu", non_blocking=True)
    event.record()
    second = x.to("cpu", non_blocking=True)
    assert first.tolist() != [0, 1, 2]
    event.synchronize()
    assert first.tolist() == [0, 1, 2] != second.tolist()
    torch.cuda.synchronize()
    assert second.tolist() == [0, 1, 2]


def test_what_python_computes_is_frozen_and_memory_is_not(device):
    x, steps = torch.zeros(2, device=device), []

    def step():
        steps.append(0)
        x.add_(len(steps))
        return x * 2

    graph, doubled = captured(step)
    assert x.tolist() == [0, 0]  # a capture only records
    for turn in (1, 2, 3):
        graph.replay()
        assert x.tolist() == [turn, turn] and doubled.tolist() == [2 * turn, 2 * turn]
    assert len(steps) == 1


def test_outputs_are_overwritten_by_other_graphs(device):
    x = torch.ones(2, device=device)
    (one, added), (other, _) = captured(lambda: x + 1), captured(lambda: x + 2)
    one.replay()
    assert added.tolist() == [2, 2]
    other.replay()
    assert added.tolist() != [2, 2] and x.tolist() == [1, 1]
    one.replay()
    assert added.tolist() == [2, 2]


def test_results_of_another_stream_read_too_early(device):
    x, side = torch.ones(2, device=device), torch.cuda.Stream()

    def beside(joined):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            doubled = (x + x) * 1
        if joined:
            torch.cuda.current_stream().wait_stream(side)
        return doubled + 1

    with pytest.raises(RuntimeError, match="must wait for what it may read"):
        torch.cuda.stream(side).__enter__()
    assert beside(joined=True).tolist() == [3, 3] != beside(joined=False).tolist()
    for joined in (True, False):
        graph, result = captured(lambda joined=joined: beside(joined))
        x.fill_(2)
        for _ in range(2):
            graph.replay()
            assert (result.tolist() == [5, 5]) == joined
