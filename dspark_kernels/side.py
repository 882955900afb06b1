"""Work beside the main line of a captured step, in a branch of its graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second stream of a GPU, for captures alone: torch may give another thread the same stream,
    but steps are captured one at a time. Elsewhere all is done where it stands."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block whose work begins behind what the current stream was given, and goes on beside
        what comes after the block, until `join`. What it reads must stay as it is meanwhile."""
        if self._stream is None or not torch.cuda.is_current_stream_capturing():
            yield
            return
        self._begun = True
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for the work of the last block."""
        if self._begun:
            self._begun = False
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
