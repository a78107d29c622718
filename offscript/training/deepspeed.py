"""DeepSpeed for the trainers: the ZeRO stage, its configuration, and cleaning up after a training.

With bfloat16 weights, DeepSpeed keeps the adapter in bfloat16 for the forward pass and optimizes a float32 master copy;
``gathered_float32`` gives access to the master copy, which is what is saved. Without DeepSpeed the adapter itself is
float32, under autocast.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from offscript.json_types import Json
from offscript.settings import DeepSpeedSettings

if TYPE_CHECKING:
    from torch.nn import Parameter


def zero_stage(settings: DeepSpeedSettings | None) -> int:
    """Returns the ZeRO stage: 0 (no DeepSpeed), 2 or 3. ``auto`` is 2 with a GPU, else 0."""
    import torch

    if settings is None:
        return 0
    if settings.stage == "auto":
        return 2 if torch.cuda.is_available() else 0
    return settings.stage


def deepspeed_config(settings: DeepSpeedSettings) -> dict[str, Json]:
    """Returns the DeepSpeed configuration. The trainers replace ``auto`` by their own arguments.

    Without an optimizer block, the AdamW of the trainers is sharded, also in CPU memory. So nothing has to be compiled,
    and the optimizer is the same with and without DeepSpeed. (DeepSpeed's CPU Adam is faster, but not noticeably so for
    the few parameters of an adapter.)
    """
    import torch

    stage, gpu = zero_stage(settings), torch.cuda.is_available()
    zero: dict[str, Json] = {"stage": stage, "overlap_comm": gpu, "contiguous_gradients": True}
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
    """Context of one training: sets up DeepSpeed (unless ``stage`` is 0), and afterwards undoes its global changes, so that
    the process can load and train other models without it."""
    if not stage:
        yield
        return
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Compiling its shared-memory all-reduce for CPUs takes over a minute, and gives the same numbers.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # Loading a model at stage 3 needs the ranks.
    deepspeed.init_distributed(backend, auto_mpi_discovery=False)
    try:
        yield
    finally:
        # Otherwise every later from_pretrained would partition its weights after stage 3.
        unset_hf_deepspeed_config()
        # Accelerate sets it, and reads it again.
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


@contextlib.contextmanager
def gathered_float32(parameters: "Sequence[Parameter]", stage: int) -> Iterator[None]:
    """Context in which the parameters hold all of their float32 values. Every rank must enter it, between two steps."""
    if not stage:
        yield
        return
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    masters = [safe_get_full_fp32_param(p) for p in parameters]
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None, enabled=stage == 3):
        original = [p.data for p in parameters]
        try:
            for parameter, master in zip(parameters, masters, strict=True):
                # None: the parameter is frozen, so the optimizer does not hold it.
                if master is not None:
                    parameter.data = master.detach().clone().view(parameter.shape).to(torch.float32)
            yield
        finally:
            for parameter, data in zip(parameters, original, strict=True):
                parameter.data = data
