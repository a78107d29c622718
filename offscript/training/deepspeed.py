"""DeepSpeed's ZeRO stages for the trainers: which one, its configuration, and what it leaves in a process.

With bfloat16 weights DeepSpeed keeps the adapter in bfloat16 for the forward pass and steps a float32 master copy;
``whole`` gives the master copy, which is what is written. Without DeepSpeed the adapter itself is float32, under
autocast.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from offscript.settings import DeepSpeedSettings


def zero_stage(settings: DeepSpeedSettings | None) -> int:
    """The ZeRO stage: 0 (no DeepSpeed), 2 or 3. ``auto`` is 2 where there is a GPU."""
    import torch

    if settings is None:
        return 0
    if settings.stage == "auto":
        return 2 if torch.cuda.is_available() else 0
    return settings.stage


def deepspeed_config(settings: DeepSpeedSettings) -> dict[str, Any]:
    """The DeepSpeed configuration for the trainers, which fill in ``auto`` from their own arguments.

    There is no optimizer block: the trainers' AdamW is sharded as it is, also in CPU memory, so that nothing has to be
    compiled and the same optimizer is stepped with and without DeepSpeed. (DeepSpeed's own CPU Adam is faster, which
    for the few parameters of an adapter does not show.)
    """
    import torch

    stage, gpu = zero_stage(settings), torch.cuda.is_available()
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": gpu, "contiguous_gradients": True}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        if settings.offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


@contextlib.contextmanager
def deepspeed_enabled(stage: int) -> Iterator[None]:
    """The length of one training with DeepSpeed (or, at stage 0, without): afterwards the process loads and trains
    other models as if it had never been used."""
    if not stage:
        yield
        return
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Its shared-memory all-reduce for CPUs would be compiled for over a minute and gives the same numbers.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(
        backend, auto_mpi_discovery=False
    )  # stage 3 asks it for the ranks when it loads
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # at stage 3 every later from_pretrained would be partitioned
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # set by accelerate, which would read it again


@contextlib.contextmanager
def gathered_float32(parameters: Sequence[Any], stage: int) -> Iterator[None]:
    """Parameters hold their whole float32 values inside the block. Every rank has to enter it, between two steps."""
    if not stage:
        yield
        return
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    masters = [safe_get_full_fp32_param(p) for p in parameters]  # every rank takes part
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None, enabled=stage == 3):
        kept = [p.data for p in parameters]
        try:
            for parameter, master in zip(parameters, masters, strict=True):
                if master is not None:  # None: frozen, so not in the optimizer
                    parameter.data = master.detach().clone().view(parameter.shape).to(torch.float32)
            yield
        finally:
            for parameter, data in zip(parameters, kept, strict=True):
                parameter.data = data
