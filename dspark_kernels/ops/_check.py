"""Argument checks: an error names the op, the argument, what was expected and what came."""

import math
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

import torch

from ..tree import DraftTree

MAX_NODES = 256
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32 = (torch.float32,)
INT32 = (torch.int32,)
INT64 = (torch.int64,)
NUMBERS = (Real, torch.SymFloat, torch.SymInt)


def _names(dtypes):
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _shape(dims):
    return f"[{dims.replace(' ', ', ')}]"


def _bound(low, high, strict=False):
    low, high = (f"{x:g}" if isinstance(x, float) else x for x in (low, high))
    if high is None:
        return f"> {low}" if strict else f">= {low}"
    return f"from {low} to {high}"


_trusted = ContextVar("_trusted", default=False)


@contextmanager
def values_on_trust(trusted: bool = True):
    """Within the block only shapes and dtypes are checked: who calls made the values himself.

    The decoding loop does. On a CPU it would otherwise spend a fiftieth of a small model's step on
    looking at its own results.
    """
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def _may_read(tensor: torch.Tensor) -> bool:
    """Whether to look at the values: on a GPU that would stop the host, a fake has none."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    return plain and not (_trusted.get() or torch.compiler.is_compiling())


class Check:
    """Checks the arguments of one call; a dimension letter means the same size in every tensor."""

    def __init__(self, op: str):
        self.op = op
        self.sizes: dict[str, int] = {}
        self.device: torch.device | None = None

    def fail(self, name: str, expected: str, got, error=ValueError):
        raise error(f"{self.op}: {name} must {expected}, got {got}")

    def require(self, condition: bool, name: str, expected: str, got) -> None:
        """Raise a ValueError unless `condition` holds."""
        if not condition:
            self.fail(name, expected, got)

    def tensor(self, name: str, value, dims: str, dtypes=FLOATS, optional: bool = False) -> None:
        """Check that `value` is a tensor of one of `dtypes` with dimensions `dims` ("B N Hq E")."""
        if value is None and optional:
            return
        if not isinstance(value, torch.Tensor):
            self.fail(name, f"be a tensor of shape {_shape(dims)}", type(value).__name__, TypeError)
        if value.dtype not in dtypes:
            self.fail(name, f"have dtype {_names(dtypes)}", _names((value.dtype,)), TypeError)
        if self.device is None:
            self.device = value.device
        elif value.device != self.device:
            self.fail(name, f"be on {self.device} like the other tensors", value.device)
        shape, letters = value.shape, dims.split()
        if letters[-1] == "...":
            letters.pop()
            shape = shape[: len(letters)]
        if len(shape) != len(letters):
            self.fail(name, f"have shape {_shape(dims)}", list(value.shape))
        for letter, size in zip(letters, shape, strict=True):
            expected = int(letter) if letter.isdigit() else self.sizes.setdefault(letter, size)
            if size != expected:
                known = "" if letter.isdigit() else f" with {letter}={expected}"
                self.fail(name, f"have shape {_shape(dims)}{known}", list(value.shape))

    def columns(self, name: str, value: torch.Tensor) -> None:
        """Check that the last dimension is not empty."""
        self.require(value.shape[-1] > 0, name, "have at least one column", list(value.shape))

    def same_dtype(self, reference: str, expected: torch.dtype, **tensors) -> None:
        """Check that every given tensor has the dtype of the argument called `reference`."""
        for name, value in tensors.items():
            if value is not None and value.dtype != expected:
                wanted = f"have dtype {_names((expected,))} like {reference}"
                self.fail(name, wanted, _names((value.dtype,)), TypeError)

    def integer(self, name: str, value, low: int, high: int | None = None) -> None:
        """Check that `value` is an int with low <= value <= high."""
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            self.fail(name, f"be an int {_bound(low, high)}", repr(value), TypeError)
        if value < low or (high is not None and value > high):
            self.fail(name, f"be {_bound(low, high)}", value)

    def number(
        self, name: str, value, low: float = -math.inf, high: float | None = None,
        strict: bool = False,
    ) -> None:  # fmt: skip
        """Check that `value` is a number with low <= value <= high, or low < value if `strict`."""
        is_number = isinstance(value, NUMBERS) and not isinstance(value, bool)
        above = is_number and (value > low if strict else value >= low)  # a NaN is neither
        if above and (high is None or value <= high):
            return
        bound = "" if low == -math.inf else f" {_bound(low, high, strict)}"
        got, error = (value, ValueError) if is_number else (repr(value), TypeError)
        self.fail(name, f"be a number{bound}", got, error)

    def values(self, name: str, value: torch.Tensor, low, high=None) -> None:
        """Check the values of a tensor on the CPU, unless they are taken on trust."""
        if value is None or not value.numel() or not _may_read(value):
            return
        smallest, largest = (bound.item() for bound in torch.aminmax(value))
        if smallest < low or (high is not None and largest > high):
            got = smallest if smallest < low else largest
            self.fail(name, f"hold values {_bound(low, high)}", got)

    def tree(self, tree) -> None:
        """Check the tensors of a `DraftTree` that a walk down the tree reads."""
        if not isinstance(tree, DraftTree):
            self.fail("tree", "be a DraftTree", type(tree).__name__, TypeError)
        self.tensor("tree.tokens", tree.tokens, "B N", INT64)
        self.tensor("tree.parents", tree.parents, "B N", INT32)
        self.tensor("tree.num_nodes", tree.num_nodes, "B", INT32)
        nodes = self.sizes["N"]
        self.require(
            1 <= nodes <= MAX_NODES, "tree", f"have 1 to {MAX_NODES} nodes (N)", f"N={nodes}"
        )
        self.values("tree.num_nodes", tree.num_nodes, 1, nodes)
        if _may_read(tree.parents):
            in_order = bool((tree.parents < torch.arange(nodes)).all())
            self.require(in_order, "tree.parents", "come before their children", "a later parent")

    def caches(self, caches, cache_seqlens, block_table) -> None:
        """Check a list of caches, contiguous [B, S, ...] or paged with a block table."""
        if not isinstance(caches, list | tuple):
            self.fail("caches", "be a list of tensors", type(caches).__name__, TypeError)
        dims = "B S ..." if block_table is None else "num_blocks block_size ..."
        checked = None
        for i, cache in enumerate(caches):
            is_tensor = isinstance(cache, torch.Tensor)
            if is_tensor and cache.shape[:2] == checked and cache.device == self.device:
                continue  # one of a hundred like the first
            self.tensor(f"caches[{i}]", cache, dims, (cache.dtype,) if is_tensor else FLOATS)
            checked = cache.shape[:2]
        self.tensor("cache_seqlens", cache_seqlens, "B", INT32)
        self.values("cache_seqlens", cache_seqlens, 0)
        self.tensor("block_table", block_table, "B max_blocks", INT32, optional=True)

    def shared(self, name: str, value: torch.Tensor, letter: str, columns: str = "") -> None:
        """Check that the entries of a tensor, `letter` of them, serve equally many of M rows."""
        rows, entries = self.sizes["M"], self.sizes[letter]
        divides = rows == 0 or (entries > 0 and rows % entries == 0)
        expected = f"have shape [{letter}{columns}] with {letter} dividing M={rows}"
        self.require(divides, name, expected, list(value.shape))

    def option(self, name: str, value, dtypes) -> None:
        """Check an option of the draw, [B]: an entry for M / B rows, B the same in all options."""
        self.tensor(name, value, "B", dtypes, optional=True)
        if value is not None:
            self.shared(name, value, "B")

    def penalty(self, seen, repetition_penalty) -> None:
        """Check the bits int64 [R, words] of the tokens seen, R dividing M, and their penalty."""
        self.option("repetition_penalty", repetition_penalty, FLOAT32)
        self.values("repetition_penalty", repetition_penalty, torch.finfo(torch.float32).tiny)
        self.tensor("seen", seen, "R words", INT64, optional=True)
        if seen is None and repetition_penalty is not None:
            self.fail("seen", "be given together with repetition_penalty", None)
        if seen is not None:
            if repetition_penalty is None:
                self.fail("repetition_penalty", "be given together with seen", None)
            self.columns("seen", seen)
            self.shared("seen", seen, "R", ", words")

    def noise(self, temperature, seed, position) -> None:
        """Check the three tensors of the noise: temperature float32, seed and position int64."""
        self.option("temperature", temperature, FLOAT32)
        self.option("seed", seed, INT64)
        self.tensor("position", position, "M", INT64, optional=True)
        if temperature is not None and (seed is None or position is None):
            missing = "seed" if seed is None else "position"
            self.fail(missing, "be given together with temperature", None)
        self.values("temperature", temperature, 0)
