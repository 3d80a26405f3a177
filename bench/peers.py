"""The trainers that a user could pick instead, as they are: Hugging Face's Trainer with PEFT, and TRL's SFTTrainer.

    T0   HF Trainer + PEFT        its defaults
    T1   TRL SFTTrainer + PEFT    its defaults: activation checkpointing, 8 sequences a batch
    T2   TRL SFTTrainer + PEFT    tuned: no checkpointing, its best batch size, image work once per image

None is patched. Each takes rows that hold nothing but a question's number, and a collator that turns numbers into the
padded batch of `shapes.plain_sequences`. All run in float32, whatever the default (TRL's is bfloat16), because ours does
here; all get the backbone with its patch embedding as a matrix product, so that torch's Conv3d is no part of the race.
TRL 1.16 applies the head at supervised positions only, in T1 and T2.
"""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from bench.ours import LoraShape, plain_backbone
from bench.shapes import Bank
from bench.timing import Laps
from scaleearth_pl.model.gated_lora import LORA_TARGETS

DEFAULT_BATCH = 8
"""Sequences a batch in both libraries' defaults."""


class _StepClock(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next: data, forward, backward, optimizer."""

    def __init__(self, laps: Laps) -> None:
        self._laps = laps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._laps.mark()


class Peer:
    """One trainer with its model, ready to step.

    Args:
        name: T0, T1 or T2.
        bank: the questions; an uncached one decodes an image for every question.
        folder: scratch folder of the trainer.
        lora: rank and alpha.
        batch_size: sequences a batch.
        model: a backbone with plain attention; None makes the tiny one.
        bf16: mixed precision, as TRL's default would have it.
    """

    def __init__(
        self,
        name: str,
        bank: Bank,
        folder: Path,
        *,
        lora: LoraShape,
        batch_size: int = DEFAULT_BATCH,
        model: Any = None,
        bf16: bool = False,
    ) -> None:
        self.name, self.bank, self.batch_size = name, bank, batch_size
        self.laps = Laps()
        rows = Dataset.from_dict({"number": list(range(len(bank)))})
        common: dict[str, Any] = {
            "output_dir": str(folder / f"{name}-{batch_size}"),
            "per_device_train_batch_size": batch_size,
            "bf16": bf16,
            "remove_unused_columns": False,
            "use_cpu": not torch.cuda.is_available(),
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "dataloader_pin_memory": False,
        }
        model, config = plain_backbone(bank.processor) if model is None else model, _lora_config(lora)
        make = _hugging_face if name == "T0" else _trl_defaults if name == "T1" else _trl_tuned
        with quiet():
            self.trainer = make(model, config, common, rows, self._collate, bank)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(_StepClock(self.laps))

    @property
    def model(self) -> Any:
        """The PEFT model."""
        return self.trainer.model

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, Tensor]:
        return self.bank.sequences([row["number"] for row in rows])

    def batches(self, numbers: range) -> list[dict[str, Tensor]]:
        """Ready batches of these questions."""
        size = self.batch_size
        return [self.bank.sequences(numbers[i : i + size]) for i in range(0, len(numbers), size)]

    def forward_backward(self, batches: list[dict[str, Tensor]]) -> float:
        """The trainer's own training step over ready batches, without the optimizer; the summed loss.

        All batches are one accumulation window: the loss is normalised by its supervised tokens.
        """
        n_supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        items = torch.tensor(n_supervised)
        self.trainer.current_gradient_accumulation_steps = 1
        losses = [self.trainer.training_step(self.model, dict(b), num_items_in_batch=items) for b in batches]
        return float(torch.stack([x.detach() for x in losses]).sum())

    def turn(self, batch_size: int) -> Callable[[], int]:
        """A contender's turn: forward and backward over one ready batch of the first questions; returns their number."""
        batches = [self.bank.sequences(range(batch_size))]

        def work() -> int:
            self.forward_backward(batches)
            self.model.zero_grad()
            return batch_size

        return work

    def train(self, n_steps: int) -> float:
        """Seconds per question of a real training run of `n_steps`, optimizer and data path included."""
        self.trainer.args.max_steps = n_steps + 1
        self.laps.clear()
        with quiet():
            self.trainer.train()
        return self.laps.median() / self.batch_size


def _lora_config(lora: LoraShape) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )


def _hugging_face(
    model: Any, config: LoraConfig, common: dict[str, Any], rows: Dataset, collate: Callable[..., Any], bank: Bank
) -> Trainer:
    peft_model = get_peft_model(model, config)
    return Trainer(model=peft_model, args=TrainingArguments(**common), train_dataset=rows, data_collator=collate)


def _trl_defaults(
    model: Any, config: LoraConfig, common: dict[str, Any], rows: Dataset, collate: Callable[..., Any], bank: Bank
) -> SFTTrainer:
    args = SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
    return _sft(args, model, config, rows, collate, bank)


def _trl_tuned(
    model: Any, config: LoraConfig, common: dict[str, Any], rows: Dataset, collate: Callable[..., Any], bank: Bank
) -> SFTTrainer:
    kwargs = {"skip_prepare_dataset": True}
    args = SFTConfig(**common, gradient_checkpointing=False, dataset_kwargs=kwargs)
    return _sft(args, model, config, rows, collate, bank)


def _sft(
    args: SFTConfig, model: Any, config: LoraConfig, rows: Dataset, collate: Callable[..., Any], bank: Bank
) -> SFTTrainer:
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collate,
        peft_config=config,
        processing_class=bank.processor.tokenizer,
    )
    if args.gradient_checkpointing:
        # `train()` does this itself; the ladder also calls `training_step` alone.
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' own warnings and tables are no result."""
    disable_progress_bars()
    disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "trl", "accelerate", "peft", "lightning.pytorch")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
            gc.collect()
