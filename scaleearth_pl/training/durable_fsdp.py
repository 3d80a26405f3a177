"""FSDP2 with checkpoints that are whole or absent: Lightning's strategy, `sealed_folder`'s promise."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.training.checkpoint_io import from_rank_zero, resolve
from scaleearth_pl.training.seal import verify
from scaleearth_pl.training.sealed_folder import Sums, flush_and_hash, seal_folder


class DurableModelParallelStrategy(ModelParallelStrategy):
    """FSDP2 as Lightning knows it, with sealed checkpoints.

    Args:
        data_parallel_size: ranks of the data-parallel group, or "auto".
        tensor_parallel_size: ranks of the tensor-parallel group, or "auto".
        save_distributed_checkpoint: each rank writes its shards into a folder; off, rank 0 gathers one file.
            Adapter-only checkpoints must be gathered: a sharded one cannot be loaded without the frozen base.
    """

    def __init__(
        self,
        data_parallel_size: int | str = "auto",
        tensor_parallel_size: int | str = "auto",
        save_distributed_checkpoint: bool = True,
    ) -> None:
        super().__init__(
            data_parallel_size=data_parallel_size,  # type: ignore[arg-type]
            tensor_parallel_size=tensor_parallel_size,  # type: ignore[arg-type]
            save_distributed_checkpoint=save_distributed_checkpoint,
        )
        self.sharded_files = save_distributed_checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves on all ranks; the folder appears whole."""
        path = Path(self.broadcast(filepath))
        if not self.sharded_files:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        step, waiting = int(checkpoint["global_step"]), path.with_name(f".{path.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(waiting, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, waiting, storage_options)
        sums: list[Sums | None] = [None] * self.world_size
        dist.all_gather_object(sums, flush_and_hash(waiting, self.global_rank))
        if self.is_global_zero:
            seal_folder(waiting, path, step, [s for s in sums if s is not None])
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads after rank 0 has compared the checksums; a folder of checkpoints gives its newest valid one."""

        def checked() -> Path:
            path = Path(checkpoint_path)
            verify(path)
            return path

        if weights_only is False:
            raise CheckpointError("a checkpoint is never unpickled", file=checkpoint_path, field="weights_only")
        chosen = resolve(Path(checkpoint_path))
        path = from_rank_zero(checked) if chosen == Path(checkpoint_path) else chosen
        if path.is_file():
            # Lightning takes the weights out before the module's hook can compare their names.
            assert self.lightning_module is not None
            self.lightning_module.on_load_checkpoint(torch.load(path, mmap=True, weights_only=True))
        return super().load_checkpoint(path, weights_only=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole on rank 0 or sharded; where loading is not strict (adapters) the frozen base is not even gathered."""
        assert self.lightning_module is not None and self.model is not None
        options = StateDictOptions(
            full_state_dict=not self.sharded_files,
            cpu_offload=True,
            ignore_frozen_params=not self.lightning_module.strict_loading,
        )
        return dict(get_model_state_dict(self.model, options=options))
