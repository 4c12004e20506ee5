from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from loratree_cli.demo.tokenizer import END, END_ID, VOCABULARY, byte_symbols, save_tokenizer, tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    return transformers.AutoTokenizer.from_pretrained(directory)


@given(text=st.text().filter(lambda text: END not in text))
def test_any_text_becomes_its_bytes_and_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == tokens(text) == list(text.encode())
    assert tokenizer.decode(ids) == text


@given(data=st.binary())
def test_any_bytes_have_tokens_that_stand_for_them(tokenizer: Any, data: bytes) -> None:
    symbols = byte_symbols()
    assert tokenizer.convert_ids_to_tokens(list(data)) == [symbols[byte] for byte in data]
    assert bytes(tokenizer.convert_tokens_to_ids([symbols[byte] for byte in data])) == data


def test_there_is_a_token_for_each_byte_and_one_more_that_ends_a_document(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCABULARY
    assert len(set(byte_symbols())) == 256
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (END_ID, END_ID, END_ID)
    assert tokenizer(f"a{END}b", add_special_tokens=False)["input_ids"] == [97, END_ID, 98]


def test_the_symbols_are_those_of_the_byte_level_alphabet() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_symbols()) == set(ByteLevel.alphabet())
