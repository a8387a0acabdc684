"""A published text data set as tokens for training and for evaluation."""

from typing import Any

from saiopt.lab.data.cache_folder import make_cache_folder
from saiopt.lab.data.published_data import read_checkpoint, read_table
from saiopt.lab.data.token_files import TokenFile, tokenized
from saiopt.lab.identity import code_hash

_HELD_OUT_SHARE = 0.0005
_SPLIT_SEED = 2357


def published_text(data: str, tokenizer: str) -> tuple[Any, TokenFile, TokenFile]:
    """Read and tokenize the split ``train`` of a data set, once.

    Args:
        data: The data set's name on the hub, or a folder of its files; it has a column
            ``text``, of which one row in 2000 is held out.
        tokenizer: A tokenizer's name on the hub, or its folder.

    Returns:
        The tokenizer; tokens for training; tokens that training never sees.
    """
    from transformers import AutoTokenizer

    table = read_table(data, "train", ("text",))
    encoder = read_checkpoint(tokenizer, "tokenizer", AutoTokenizer.from_pretrained)
    parts = table.train_test_split(test_size=_HELD_OUT_SHARE, seed=_SPLIT_SEED)
    train, held_out = (
        tokenized(
            parts[part],
            lambda texts: encoder(texts, add_special_tokens=False)["input_ids"],
            encoder.eos_token_id,
            [data, table._fingerprint, tokenizer, part, code_hash(__name__)],
            make_cache_folder(),
        )
        for part in ("train", "test")
    )
    return encoder, train, held_out
