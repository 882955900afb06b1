"""The threads which share a kernel's work on the CPU: who calls, how many there are, and forks."""

import pytest
from test_library import native, python

PRODUCT = """
import os, time
from concurrent.futures import ThreadPoolExecutor
import torch
import dspark_kernels

x, weight = torch.randn(4, 512), torch.randn(2000, 512)

def product():
    return torch.ops.dspark.fused_linear.default(x, [weight], [], False, None, None, 0.0)[0]

def same(_=None):
    return torch.equal(product(), expected)

torch.set_num_threads(1)
expected = product()
torch.set_num_threads(3)
"""
CHECKS = {
    "several callers at once": """
with ThreadPoolExecutor(8) as callers:
    assert all(callers.map(same, range(500)))
""",
    "other numbers of threads": """
for count in (3, 1, 5, 2, 4) * 20:
    torch.set_num_threads(count)
    assert same()
""",
    "pauses in between": """
for _ in range(40):
    assert same()
    time.sleep(0.002)
""",
    "a forked process": """
assert same()
for _ in range(3):  # the second child is one of a process which has forked before
    child = os.fork()
    if child == 0:
        os._exit(0 if all(same() for _ in range(50)) else 1)
    assert os.waitpid(child, 0)[1] == 0
assert same()
""",
    "threads that take part": """
def seconds():  # of each thread, in the kernel's ticks
    threads = {}
    for thread in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{thread}/stat").read().rsplit(")", 1)[1].split()
        threads[thread] = int(fields[11]) + int(fields[12])
    return threads

before, end = seconds(), time.time() + 60
product()
ours = seconds().keys() - before.keys()
assert len(ours) == 2
while min(seconds()[thread] for thread in ours) < 3:
    assert time.time() < end
    product()
""",
}


@native
@pytest.mark.parametrize("policy", ["active", "passive"])
@pytest.mark.parametrize("name", CHECKS)
def test_work_is_shared(name, policy):
    done = python("-c", PRODUCT + CHECKS[name], OMP_WAIT_POLICY=policy, DSPARK_BACKEND="native")
    assert done.returncode == 0, done.stderr
