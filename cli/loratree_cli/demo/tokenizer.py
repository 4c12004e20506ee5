"""A byte-level tokenizer: token id = byte, plus one token that ends a document."""

from pathlib import Path
from typing import Final

END: Final = "<|end|>"
END_ID: Final = 256
VOCABULARY: Final = 257


def tokens(text: str) -> list[int]:
    """Return the token ids of `text`: its bytes in UTF-8."""
    return list(text.encode())


def byte_symbols() -> list[str]:
    """Return the printable character for each byte in GPT-2's byte-level alphabet, in the order of the bytes.

    A printable Latin-1 character stands for its own byte; the other bytes take characters from U+0100 on, in order.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def save_tokenizer(directory: Path) -> None:
    """Write the tokenizer's files, as `AutoTokenizer.from_pretrained(directory)` reads them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())} | {END: END_ID}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(directory)
