"""Kernels that start before the one in front has ended (programmatic dependent launch, from sm_90 on).

Such a kernel lets the next one start at once, does what depends on weights alone, and waits until everything in front
has ended before it reads or writes anything else. As every one of them waits, order is kept over any number of kernels.
"""

import triton
import triton.language as tl


def early(ahead: int | None) -> dict[str, bool]:
    """Launch options: with `ahead` (bytes of weights to fetch while waiting) a kernel starts early."""
    return {} if ahead is None else {"EARLY": True, "launch_pdl": True}


@triton.jit
def started(EARLY: tl.constexpr):
    """Lets the next kernel start, and waits for those in front."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch_ahead(p_rows, count):
    """Asks for the first `count` bytes of every row, a multiple of 16, to be brought into the L2 cache."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [p_rows.to(tl.int64), tl.zeros(p_rows.shape, tl.int32) + count],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
