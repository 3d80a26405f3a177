"""What autograd keeps of a token until its backward, counted from the code of a Qwen3-VL block with gated LoRA.

In bytes of one token in one block of the LLM; e is the size of a number in the computing dtype, W the hidden width,
A all query heads, K all key heads, I the MLP's width, H the number of query heads, r the LoRA rank:

    RMSNorm            4 (2 W + A + K)    its input in float32: the stream twice, queries, keys
    linear layers      2 e W              what q, k, v and what gate, up read: LoRA keeps it; a frozen base, in 4-bit or
                                          written out, keeps its weight alone
    tree attention     2 e (A + K) + 4 H  queries, keys, values, the output (which o reads too), the log-sum-exp
    SwiGLU             4 e I              gate, its SiLU, up, and their product (which down reads)
    gated LoRA         14 e r             A x and its gated form, in seven layers
    trained norms      e (2 W + A + K)    where their weights train, stage 1

At 8B in bfloat16 with rank 64 these are 190,336 bytes, in 36 blocks 6.85 MB. Left out are logits, which supervised tokens
alone have (a few percent); the last block's MLP, which leaves out the other tokens; and the vision tower, which trains
in stage 1 only, where `bf16-mixed` in turn keeps about half of what float32 is counted for. Measured at tiny size: a block
keeps what is counted to 3 % (`tests/training/test_memory.py`); the peak of a bfloat16 step grows by 33.2 kB a token where
35.2 are counted, with checkpointing by 13.2 where 10.3 are: gradients under way are not kept, and not counted.
"""

from typing import Any


def bytes_per_token(text: Any, *, element: int, rank: int, trained: bool = False, checkpointing: bool = False) -> int:
    """Bytes of one token in all blocks of the LLM.

    Args:
        text: `text_config` of a Qwen3-VL.
        element: bytes of a number in the computing dtype.
        rank: of LoRA, 0 without.
        trained: the blocks' own weights train.
        checkpointing: of every block only its input is kept, and all the rest of one block at a time.
    """
    block, n_blocks = _block_bytes(text, element=element, rank=rank, trained=trained), int(text.num_hidden_layers)
    return block + n_blocks * element * int(text.hidden_size) if checkpointing else n_blocks * block


def _block_bytes(text: Any, *, element: int, rank: int, trained: bool) -> int:
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    attended = (heads + int(text.num_key_value_heads)) * int(text.head_dim)
    normed = 2 * hidden + attended
    kept = 2 * hidden + 2 * attended + 4 * int(text.intermediate_size) + 14 * rank + normed * trained
    return 4 * normed + element * kept + 4 * heads
