"""A CUDA device for the tests of a machine without one, as strict about order as a real one.

Its tensors hold their data on the CPU, where the CPU kernels run. What would be wrong on a GPU is
an error, or shows: tensors of two devices in one call; a capture that waits for the device; results
read before an event said that they had arrived, or of another stream before it was waited for;
memory that another graph has overwritten; and what Python computes during a capture, since a replay
repeats nothing but the ops.
"""

import ctypes
import subprocess
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
RUBBISH = 0x5B  # in every byte that is not there yet or is overwritten
ACROSS = {  # ops where tensors of both devices may meet
    "aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_",
    "aten::_has_compatible_shallow_copy_type",
}  # fmt: skip


class DeviceTensor(torch.Tensor):
    """A tensor of the device, whose data is `held`, a CPU tensor."""

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return device.run(function, args, kwargs or {})

    def __repr__(self):
        return f"DeviceTensor({self.held})"

    def data_ptr(self):
        return self.held.data_ptr()

    def tolist(self):
        device.wait("tolist")
        return self.held.tolist()


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _held(tree):
    return tree_map_only(DeviceTensor, lambda tensor: tensor.held, tree)


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Stream:
    """For torch.cuda.Stream: what is made in `using` is not there until another waits for it."""

    def __init__(self, device=None):
        self.device, self.made, self.hidden, self.waited = device, None, [], 0

    @contextmanager
    def using(self):
        """For torch.cuda.stream."""
        if self.waited < device.given:
            raise RuntimeError("a stream must wait for what it may read")
        before, device.stream, self.made = device.stream, self, []
        try:
            yield
        finally:
            device.stream, made, self.made = before, self.made, None
        device.between(partial(self.hide, made))

    def hide(self, made):
        self.hidden += [(storage, storage.clone()) for storage in made]
        for storage in made:
            storage.fill_(RUBBISH)

    def show(self):
        while self.hidden:
            storage, values = self.hidden.pop()
            storage.copy_(values)

    def wait_stream(self, other):
        self.waited = device.given
        device.between(other.show)

    def synchronize(self):
        device.wait()


class Device(TorchDispatchMode):
    """Runs every op, in every test."""

    def __init__(self):
        super().__init__()
        self.capture = None  # the calls of a graph to be: (function, args, kwargs, outputs)
        self.before = {}  # by address: memory which the capture changed, and what was there
        self.arriving, self.arrived = [], 0  # (tensor on the host, its values to be); how many were
        self.stream, self.given = Stream(), 0  # ops given to the main one

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function, args, kwargs):
        """Run an op on the device if its inputs are there, or where its argument `device` says."""
        inputs, to = _tensors((args, kwargs)), kwargs.get("device")
        here = [tensor for tensor in inputs if isinstance(tensor, DeviceTensor)]
        composite = DispatchKey.CompositeImplicitAutograd
        if function.has_kernel_for_dispatch_key(composite) and (here or to is not None):
            with self:  # in inference mode these come in one piece
                return function.decompose(*args, **kwargs)
        name = function._schema.name
        scalars = 0 if name.startswith("aten::") else -1  # dimensions that may come from the host
        others = [t for t in inputs if not isinstance(t, DeviceTensor) and t.dim() > scalars]
        if here and others and name not in ACROSS:
            raise RuntimeError(f"{name}: tensors on cpu and cuda: {[t.shape for t in inputs]}")
        on_device = bool(here) if to is None else torch.device(to).type == "cuda"
        to_host = name == "aten::_to_copy" and bool(here) and not on_device
        later = to_host and bool(kwargs.get("non_blocking"))
        onto_host = name == "aten::copy_" and not isinstance(args[0], DeviceTensor)
        if here and (name == "aten::_local_scalar_dense" or onto_host or (to_host and not later)):
            self.wait(name)

        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = _held(args), _held(kwargs)
        if self.capture is not None and function._schema.is_mutable:
            for tensor in _tensors((args, kwargs)):
                storage = tensor.untyped_storage()
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        outputs = function(*args, **kwargs)
        if name == "aten::_to_copy" and outputs is args[0]:
            outputs = outputs.clone()
        if self.capture is not None and on_device:
            self.capture.append((function, args, kwargs, outputs))
        if on_device and self.stream.made is None:
            self.given += 1
        elif on_device:
            given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
            made = [tensor for tensor in _tensors(outputs) if _memory(tensor) not in given]
            self.stream.made += [tensor.untyped_storage() for tensor in made]
        if later:
            self.arriving.append((outputs, outputs.clone()))
            outputs.untyped_storage().fill_(RUBBISH)
        if not on_device:
            return outputs
        known = {id(tensor.held): tensor for tensor in here}  # of ops that work in place

        def placed(tensor):
            if id(tensor) in known:
                return known[id(tensor)]
            with torch.inference_mode(False):  # a view may be taken in inference mode and outside
                return DeviceTensor(tensor)

        return tree_map_only(torch.Tensor, placed, outputs)

    def between(self, function):
        """Call a function between two ops, also whenever they are replayed."""
        function()
        if self.capture is not None:
            self.capture.append((lambda: function() or (), (), {}, ()))

    def wait(self, what="synchronize"):
        """The host waits until all that was sent to it has arrived."""
        if self.capture is not None:
            raise RuntimeError(f"{what}: a capture must not wait for the device")
        self.arrive(self.arrived + len(self.arriving))

    def arrive(self, total):
        """As many copies as that have arrived on the host since the start."""
        while self.arrived < total:
            tensor, values = self.arriving.pop(0)
            tensor.copy_(values)
            self.arrived += 1


device = Device()


class Graph:
    """For torch.cuda.CUDAGraph: the ops of a capture, over the same memory at every replay."""

    last = None  # the graph that used the memory which all of them share

    def __init__(self):
        self.calls = []

    def pool(self):
        return "of all graphs"

    def replay(self):
        if Graph.last not in (None, self):
            Graph.last.overwrite()
        Graph.last = self
        for function, args, kwargs, outputs in self.calls:
            again = _tensors(function(*args, **kwargs))
            for tensor, new in zip(_tensors(outputs), again, strict=True):
                if _memory(tensor) != _memory(new):
                    tensor.copy_(new)

    def overwrite(self):
        """Fill the memory of all that the calls make."""
        given = set()
        for _, *inputs, outputs in self.calls:
            given |= {_memory(tensor) for tensor in _tensors(inputs)}
            for tensor in _tensors(outputs):
                if tensor.numel() and _memory(tensor) not in given:
                    tensor.untyped_storage().fill_(RUBBISH)


@contextmanager
def capture(graph, pool=None, stream=None, capture_error_mode="global"):
    """For torch.cuda.graph; what a capture does to memory is undone: it only records."""
    device.capture, device.before = graph.calls, {}
    try:
        yield
    finally:
        device.capture = None
        for storage, values in device.before.values():
            storage.copy_(values)


class Event:
    """For torch.cuda.Event."""

    def __init__(self, enable_timing=False):
        self.sent = 0

    def record(self, stream=None):
        self.sent = device.arrived + len(device.arriving)

    def synchronize(self):
        device.arrive(self.sent)

    def elapsed_time(self, end):
        return 1.0


def install(folder: Path) -> None:
    """Let torch know the device; for the rest of the process."""
    library, source = folder / "guard.so", Path(__file__).with_name("guard.cpp")
    torch_folder = Path(torch.__file__).parent
    compiler = ("g++", "-std=c++20", "-fPIC", "-shared", "-isystem", str(torch_folder / "include"))
    links = (f"-L{torch_folder / 'lib'}", "-lc10")
    subprocess.run([*compiler, str(source), *links, "-o", str(library)], check=True)
    ctypes.CDLL(str(library))
    torch.cuda._lazy_init = lambda: None
    torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.Event = Graph, capture, Event
    torch.cuda.synchronize = device.wait
    torch.cuda.Stream, torch.cuda.stream = Stream, Stream.using
    torch.cuda.is_current_stream_capturing = lambda: device.capture is not None
    torch.cuda.device = nullcontext
    torch.cuda.current_stream = lambda _=None: device.stream
    torch.cuda.set_stream = lambda stream: None
    torch._C._cuda_clearCublasWorkspaces = lambda: None
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    make = torch.tensor  # of data is beneath a mode's notice

    def tensor(data, *, device=None, **options):
        made = make(data, **options)
        return made if device is None else made.to(device)

    torch.tensor = tensor
