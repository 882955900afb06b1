"""Work beside the main line of a step: on a GPU in a stream of its own, also when captured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second stream of a GPU; on the CPU all is done where it stands."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block whose work begins behind what the current stream was given, and goes on beside
        what comes after the block, until `join`. What it reads must stay as it is meanwhile."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for the work of a block; in a capture there must be one."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
