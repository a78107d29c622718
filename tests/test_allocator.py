"""Freed memory stays with the process, so that the next tensor of its size is not filled with zeros page by page."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from offscript.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * (64 * 2**20)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_block_that_is_allocated_again_has_no_new_pages():
    counts = {}
    for how in ("kept", "returned"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        counts[how] = int(done.stdout)
    # 64 MiB are 16,384 pages of 4 KiB.
    assert counts["kept"] < 100 < counts["returned"]


GAPS = """
from offscript import allocator

allocator.keep_freed_memory()
blocks = [bytearray(b"x") * (2**20 + 4096 * i) for i in range(64)]
del blocks[::2]
print(allocator.kept_bytes())
allocator.LARGE_BYTES = int(__import__("sys").argv[1])
allocator.return_freed_memory()
print(allocator.kept_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("most, returned", [(2**20, True), (2**40, False)])
def test_freed_memory_between_live_blocks_is_returned_once_it_is_large(most, returned):
    done = subprocess.run([sys.executable, "-c", GAPS, str(most)], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    # 32 blocks of a little more than 1 MiB were freed.
    assert before > 32 * 2**20
    assert (after < before - 30 * 2**20) == returned
