"""A step can be captured: it reads no value, and what it does and allocates is in its shapes."""

import threading
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from tiny import KINDS, tiny_draft, tiny_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dspark_kernels import graph
from dspark_kernels._library import SCHEMAS
from dspark_kernels.cost import CostTable
from dspark_kernels.decode import _Loop, generate, step
from dspark_kernels.graph import HELD, Graphs, Readback, Session
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.integrations.transformers import TransformersTarget
from dspark_kernels.ops import values_on_trust
from dspark_kernels.packing import Budget
from dspark_kernels.prefill import prefill
from dspark_kernels.sampling import Sampling
from dspark_kernels.scheduler import Scheduler
from dspark_kernels.statistics import no_clock

NODES, CUT = 12, 5
PLAIN = Sampling(temperature=0.5, top_p=0.9, seed=[1, 2])
SAMPLING = replace(PLAIN, repetition_penalty=1.2)
FEW = replace(PLAIN, top_k=20)
PROMPTS = [[1, 2, 3], [4]], [[9, 8, 9, 8, 9, 8, 9, 8, 9], [5, 6]]


class Recorder(TorchDispatchMode):
    """Which ops run, with the shapes of what they return, and how many tensors are allocated.

    launches: the names of those ops which write memory.
    """

    def __init__(self, inputs):
        super().__init__()
        self.kept, self.calls, self.launches, self.allocations = list(inputs), [], [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        outputs = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(outputs) if _is_tensor(leaf)]
        new = sum(_storage(tensor) not in given for tensor in tensors)
        made = new and "empty" not in str(function)
        if made or function._schema.is_mutable:
            self.launches.append(str(function))
        self.allocations += new
        self.kept += tensors  # so that no storage is mistaken for one that is gone
        self.calls.append((str(function), [(t.shape, t.dtype) for t in tensors]))
        return outputs


def _is_tensor(leaf):
    return isinstance(leaf, torch.Tensor)


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()


def tensors_of(state):
    """The buffers of a state by name."""
    parts = {part.name: getattr(state, part.name) for part in fields(state)}
    sampling = dict(zip(state.sampling._fields, state.sampling, strict=True))
    cache = {"storage": state.cache.storage, "seqlens": state.cache.seqlens}
    return {name: t for name, t in (parts | sampling | cache).items() if _is_tensor(t)}


@pytest.fixture(params=["the model's own layers", "fused layers"])
def target(request):
    target = TransformersTarget(tiny_model())
    assert target.fused is not None
    if request.param != "fused layers":
        target.fused = None  # as with layers that it cannot read
    return target


@pytest.fixture
def draft(target):
    return bound_draft(target)


def bound_draft(target):
    bound = tiny_draft().bind(target.embedding, target.lm_head)
    target.feature_layers = bound.feature_layers
    return bound


@pytest.fixture(params=[2 * CUT, 7], ids=["equal trees", "shared nodes"])
def budget(request):
    return Budget(CUT, request.param)


def run(target, draft, state, budget):
    choose = None if budget is None else lambda scores: budget
    return step(target, draft, state, NODES, 0.1, no_clock, choose)


def loaded(target, prompts, session=None, sampling=SAMPLING):
    return prefill(target, prompts, sampling, [3], 20, room=40, session=session)[0]


@torch.no_grad()
@values_on_trust()
@pytest.mark.parametrize("sampling", [SAMPLING, FEW], ids=["from all", "from few"])
def test_a_step_reads_no_value(target, draft, budget, sampling):
    """Fake tensors have shapes only: .item(), nonzero and shapes made from data raise."""
    state = loaded(target, PROMPTS[0], sampling=sampling)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {name: mode.from_tensor(tensor) for name, tensor in tensors_of(state).items()}
    cache = replace(state.cache, storage=fake.pop("storage"), seqlens=fake.pop("seqlens"))
    sampling = tree_map_only(torch.Tensor, mode.from_tensor, state.sampling)
    for name in state.sampling._fields:
        fake.pop(name, None)
    state = replace(state, cache=cache, sampling=sampling, **fake)
    with mode:
        with pytest.raises(DataDependentOutputException):
            state.lengths[0].item()
        for drafter in (None, draft):
            outcome = run(target, drafter, state, budget)
            assert outcome.tokens.shape == (2, 1 if drafter is None else draft.max_depth + 1)
    assert outcome.scores.shape == (2, NODES)


@torch.inference_mode()
def test_a_step_does_the_same_whatever_its_data(target, draft, budget):
    """Other prompts, lengths and a finished request: the same ops, shapes and allocations."""
    session = Session()
    state = loaded(target, PROMPTS[0], session)
    buffers = tensors_of(state)
    places = {name: tensor.data_ptr() for name, tensor in buffers.items()}
    records = []
    for prompts, done in ((PROMPTS[0], False), (PROMPTS[1], False), (PROMPTS[1], True)):
        assert loaded(target, prompts, session) is state
        state.done[0] = done
        before = state.lengths.clone()
        with Recorder(buffers.values()) as recorder:
            counts = run(target, draft, state, budget).counts
        assert torch.equal(state.lengths, before + counts) and (counts[0] == 0) == done
        records.append((recorder.calls, recorder.allocations))
    assert records[0] == records[1] == records[2]
    assert records[0][1] > 0
    assert {name: tensor.data_ptr() for name, tensor in tensors_of(state).items()} == places


@torch.inference_mode()
@values_on_trust()
@pytest.mark.parametrize(
    ("options", "most"),
    [
        (Sampling(), 17), (PLAIN, 20), (FEW, 21),
        (Sampling(repetition_penalty=1.1), 19), (replace(FEW, repetition_penalty=1.1), 24),
    ],
)  # fmt: skip
def test_a_step_adds_few_launches_to_the_target(target, draft, options, most, monkeypatch):
    """A linear_topk counts as one here and is two."""
    state, _ = prefill(target, PROMPTS[0], options, [3], 20, room=40)
    passed = [torch.randn(2 * NODES, part.shape[1]) for part in (state.hidden, state.features)]
    monkeypatch.setattr(target, "forward", lambda *_: passed)
    with Recorder(tensors_of(state).values()) as recorder:
        run(target, draft, state, None)
    assert 8 <= len(recorder.launches) <= most, recorder.launches


@torch.inference_mode()
@pytest.mark.parametrize(("fused", "count"), [(True, 6), (False, 40)])
def test_launches_of_a_layer(fused, count):
    """Of ours, where a fused_linear counts as one, and of transformers' in bfloat16; see README."""
    launches = []
    for layers in (1, 2):
        model = tiny_model().bfloat16()
        model.config.num_hidden_layers = layers
        model.model.layers = model.model.layers[:layers]
        target = TransformersTarget(model)
        if not fused:
            target.fused = None
        cache, tokens = target.new_cache(1, 8), torch.zeros(1, 1, dtype=torch.int64)
        with Recorder(cache.tensors) as recorder:
            target.forward(tokens, tokens, cache, tokens.new_ones(1, 1, 1))
        launches.append(recorder.launches)
    assert len(launches[1]) - len(launches[0]) == count, launches[1]


def test_on_the_cpu_functions_are_called_as_they_are():
    graphs, calls = Graphs(torch.device("cpu")), []
    assert [graphs("key", lambda: calls.append(0) or len(calls)) for _ in range(3)] == [1, 2, 3]
    tensor = torch.ones(2)
    assert Readback(tensor).get() is tensor


@pytest.mark.cuda
@torch.inference_mode()
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(), Sampling(repetition_penalty=1.2), PLAIN, SAMPLING, replace(SAMPLING, top_k=20),
    ],
    ids=["greedy", "greedy, penalized", "sampled", "sampled, penalized", "listed, penalized"],
)  # fmt: skip
@pytest.mark.parametrize("layers", ["the model's own layers", "fused layers"])
def test_replayed_steps_are_the_eager_ones(layers, sampling, device):
    """Every step of a run from its graph, beside the same step as it is: the same bits."""
    target = TransformersTarget(tiny_model().to(device))
    assert target.fused is not None
    if layers != "fused layers":
        target.fused = None
    draft = bound_draft(target)
    eager, replayed = (prefill(target, PROMPTS[1], sampling, [3], 60, room=40)[0] for _ in range(2))
    graphs = Graphs(replayed.history.device)
    for turn in range(12):
        budget = (Budget(NODES, 2 * NODES), Budget(CUT, 7), Budget(CUT, 2 * CUT), None)[turn % 4]
        drafter = draft if budget else None

        def advance(state, drafter=drafter, budget=budget):
            return step(target, drafter, state, NODES, 0.0, no_clock, lambda scores: budget)

        expected = advance(eager)
        outcome = graphs(budget, lambda advance=advance: advance(replayed))
        for one, other in zip(outcome, expected, strict=True):
            assert one is other is None or torch.equal(one, other)
        for name, tensor in tensors_of(eager).items():
            if name != "storage":  # slots behind a request's tokens are scratch
                assert torch.equal(tensor, tensors_of(replayed)[name]), name


@pytest.mark.cuda
@pytest.mark.parametrize("nodes", ["fixed", "plain", "scheduled"])
def test_captured_generation_is_lossless_call_after_call(nodes, device):
    costs = CostTable({}, [64], [1, 64], [[1.0, 2.0]], [1], [0.1], [0.0])
    num_nodes = {"fixed": 16, "plain": 1, "scheduled": Scheduler((1, 4, 16), costs)}[nodes]
    target = TransformersTarget(tiny_model().to(device))
    draft = bound_draft(target)
    session = Session()
    sampled = Sampling(temperature=0.8, seed=[3, 4])
    for sampling in (Sampling(), sampled, replace(sampled, top_k=30, top_p=0.9)):
        for prompts in (PROMPTS[0], PROMPTS[1], PROMPTS[0]):
            options = {"max_new_tokens": 40, "sampling": sampling}
            expected = generate(target, None, prompts, num_nodes=1, **options).tokens
            out = generate(target, draft, prompts, num_nodes=num_nodes, session=session, **options)
            assert out.tokens == expected


@pytest.mark.cuda
@pytest.mark.emulated  # a GPU may round scores differently
def test_captured_steps_draft_what_the_cpu_drafts(device):
    """Wrong drafts, such as results of the side stream read too early, would change no token."""
    model, accepted = tiny_model(), []
    for place in ("cpu", device):
        target = TransformersTarget(model.to(place))
        options = {"max_new_tokens": 40, "num_nodes": 16}
        out = generate(target, bound_draft(target), PROMPTS[1], **options)
        accepted.append(out.statistics.accepted)
    assert accepted[0] == accepted[1] and len(accepted[0]) > 5


@pytest.mark.cuda
def test_captured_steps_leave_out_what_the_caller_ended(device):
    target = TransformersTarget(tiny_model().to(device))
    draft, asked = bound_draft(target), [0, 0]
    options = {"max_new_tokens": 40, "num_nodes": 16}
    free = generate(target, draft, PROMPTS[0], **options).tokens

    def stop_when(request, tokens):
        asked[request] += 1
        return len(tokens) == (5, 40)[request]

    session = Session()
    out = generate(target, draft, PROMPTS[0], stop_when=stop_when, session=session, **options)
    assert out.tokens == [free[0][:5], free[1]] and asked == [5, 40]
    ((state, *_),) = session._held.values()
    assert state.done.tolist() == [True, True] and int(state.lengths[0]) < len(PROMPTS[0][0]) + 40


@pytest.mark.cuda
def test_where_a_reference_serves_an_op_steps_are_not_captured(device, monkeypatch):
    target = TransformersTarget(tiny_model().to(device))
    draft = bound_draft(target)
    expected = generate(target, draft, PROMPTS[0], max_new_tokens=20, num_nodes=16).tokens
    monkeypatch.setattr(graph, "captures_steps", lambda: False)
    monkeypatch.setattr(Graphs, "_capture", None)
    graphs = Graphs(target.device)
    assert not graphs.settled("key")
    assert [graphs("key", lambda: 5) for _ in range(3)] == [5] * 3 and graphs.settled("key")
    assert generate(target, draft, PROMPTS[0], max_new_tokens=20, num_nodes=16).tokens == expected


def test_references_are_not_captured(monkeypatch):
    """They read values: the one of `accept_tree` asks which nodes move."""
    served = dict.fromkeys(SCHEMAS, "native")
    monkeypatch.setattr(graph, "backend_of", lambda op, device: (served[op], ""))
    assert graph.captures_steps()
    served["accept_tree"] = "reference"
    assert not graph.captures_steps()


@pytest.mark.cuda
def test_experts_that_cannot_be_captured_are_refused(device):
    model = tiny_model(model_type="mixtral", **KINDS["mixtral"]).to(device)
    assert TransformersTarget(model).fused is not None
    decoder = SpeculativeDecoder(model, None, None)
    model.set_experts_implementation("eager")
    with pytest.raises(ValueError, match="model must stay as it was"):
        decoder.generate([[1, 2]], max_new_tokens=2)
    with pytest.raises(ValueError, match="got the experts_implementation 'eager'"):
        TransformersTarget(model)


@pytest.mark.cuda
def test_a_capture_follows_a_whole_run_of_the_same_thread(device):
    total, runs, fails = torch.zeros(1, device=device), [], True
    graphs = Graphs(total.device)

    def function():
        runs.append(len(runs))
        if fails:
            raise KeyboardInterrupt
        return total.add_(1)

    with pytest.raises(KeyboardInterrupt):
        graphs("key", function)
    fails = False
    thread = threading.Thread(target=graphs, args=("key", function))
    thread.start()
    thread.join()
    graphs("key", function)
    assert not graphs.settled("key")
    for calls in (4, 4, 4):  # a capture, which is a run, then replays
        graphs("key", function)
        assert graphs.settled("key") and len(runs) == calls
    assert total.item() == 5


def test_a_session_forgets_what_was_not_used_for_longest(monkeypatch):
    target, session = TransformersTarget(tiny_model()), Session()
    greedy = Sampling().tensors(1, target.device)

    def take(batch, capacity=100):
        session.take(target, capacity, greedy, 0, [[1]] * batch)
        return session.graphs

    first, *_ = [take(batch) for batch in range(1, HELD + 1)]
    assert take(1) is first
    second = take(2, 400)
    take(HELD + 1)  # in the place of the third, which was not used for longest
    assert take(1) is first and take(2, 300) is second
    monkeypatch.setattr(graph, "HELD_BYTES", 0)
    take(9)
    assert len(session._held) == 1


def test_shared_trees_have_few_sizes_on_a_gpu():
    """Each is a capture of its own."""
    scheduler = Scheduler((1, 2, 4, 6, 12, 40), CostTable({}, [64], [1], [[1.0]], [1], [0.1], [0]))
    loop = object.__new__(_Loop)
    loop.scheduler, loop.requests, loop.graphs = scheduler, range(4), SimpleNamespace(cuda=True)
    for budget, expected in {
        (1, 4): (1, 4), (6, 24): (6, 24), (6, 23): (8, 23), (12, 30): (32, 30), (40, 50): (40, 50),
    }.items():  # fmt: skip
        scheduler.budget = Budget(*budget)
        assert loop.budget == expected
