"""Byte-level BPE: both faces give the ids of the `tokenizers` library, of transformers and of llama.cpp."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from byte_pairs import (
    PRE_TOKENIZERS,
    SPECIALS,
    added,
    reference,
    smollm2_json,
    smollm2_metadata,
    tokenizer_json,
    trained,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kerasllm.text import BytePairTokenizer, load_tokenizer
from kerasllm.text.bpe_files import byte_alphabet
from kerasllm.text.bpe_graph import _ASSIGNED

ANY = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
UGLY = [
    "",
    " ",
    "  ",
    "\n",
    " \n \n\n  x\n\t y\r\n\r\n z \t",
    "a  b   c\t\td\n\n\ne \n f  \n\n  g   ",
    "I'll can't WE'RE it's 'twas ''s 's's '\u017f'\u017fx x'Lly \n's \t's  's 'S5's",
    "12345 3.14159 ½ ٣ 一 Ⅷ ² 1 22 333 4444  5\n6\t7",
    "def f(x):\n    return x  # 4 blanks\n\n\tfor (int i = 0; i < n; ++i) { a[i] += b[i]; }\r\n",
    "😀👨‍👩‍👧🏳️‍🌈🇨🇳 👍🏽 a😀b",
    "e\u0301 é ﬁ ① Å ａｂｃ ｶﾞ \u0301\u0301 x\u0301y ª º ʼn",
    "数学是研究數量的学科。「引」 数学 abc数学",
    "مرحبا שָׁלוֹם नमस्ते ภาษาไทย 한국어",
    "\0 a\0b\0\0",
    "".join(map(chr, range(0x21))),
    "\x7f\x80\x85\x9f\xa0\xad \x04\x06\x13\x14\x16\x1d",
    "\u00a0a\u1680b\u2003c\u2028d\u2029e\u202ff\u3000g\u200bh\u200fi\u2060j \u00a0 \u3000 k",
    "\ufeffBOM\ufeff\ufffd\ufffe\uffff\U0010ffff\ue000\U000f0000",
    "\u0378\u0379 \U00011de0\U00011de1 \U0001fbf5 \U00050000\U000cffff 𠀀𪛟 𐐀𐐨 𝟘𝟙",
    "Ġ Ċ ġ \u0100\u0143 ¡¬®ÿ",
    "aaaa aaaaa aaaaaa " + "ab" * 40,
    "x" * 10_000,
    "<|endoftext|>a <|endoftext|><|endoftext|> <|endoftext <|im_start|>user\nHi<|im_end|>\n<|IM_END|>",
    "<|begin_of_text|>x<|eot_id|>\n\n<|eot_id|> \n<|end_of_text|>",
    " | ; |; a|b;c || ;; |\n|",
]
ALPHABET = [
    *" \n\t\r'|;sStTLlreREvVmMdDaé5٣½数!.\u00a0\u3000\u0085😀\u200d\0\x04\u0301\u0378\U00011de0\u017f\ufeff\ufffdˇª²",
    *("  ", "'s", "'LL", "<|endoftext|>", "<|im_start|>", "<|eot_id|>", "<|eot_id|>\n", "<|"),
]
UNICODE = st.lists(st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=30).map("".join)


class Quiet(dict):
    """Does not fill the terminal with vocabularies when a property fails."""

    def __repr__(self):
        return f"<{len(self)} tokenizers>"


@pytest.fixture(scope="module")
def small():
    """Small tokenizers of each family, and the library's."""
    contents = {kind: trained(kind) for kind in PRE_TOKENIZERS}
    return Quiet({kind: (BytePairTokenizer.from_tokenizer_json(c), reference(c)) for kind, c in contents.items()})


@pytest.fixture(scope="module")
def smollm2():
    metadata = smollm2_metadata()
    return BytePairTokenizer.from_gguf(metadata), reference(smollm2_json(metadata))


def gpt2_files(data_dir):
    folder = data_dir / "tokenizers"
    return (folder / "gpt2.encoder.json").read_bytes(), (folder / "gpt2.vocab.bpe").read_bytes()


@pytest.fixture(scope="module")
def gpt2(data_dir):
    return BytePairTokenizer.from_files(*gpt2_files(data_dir))


def graph_encode(tokenizer, texts):
    import tensorflow as tf

    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return tokenizer.tokenize(tf.constant(encoded, tf.string)).to_list()


def graph_decode(tokenizer, rows):
    import tensorflow as tf

    ids = tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)
    return [text.decode() for text in tokenizer.detokenize(ids).numpy()]


def check(tokenizer, library, texts):
    """Both faces against the library, there and back."""
    rows = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [tokenizer.encode(text) for text in texts] == rows
    assert graph_encode(tokenizer, texts) == rows
    decoded = [library.decode(row, skip_special_tokens=True) for row in rows]
    assert [tokenizer.decode(row) for row in rows] == decoded
    assert graph_decode(tokenizer, rows) == decoded
    if tokenizer.lossless:
        assert all(back == text for back, text in zip(decoded, texts, strict=True) if "<|" not in text)


# Equal to others


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_small_ones_give_what_the_library_gives(small, kind):
    check(*small[kind], UGLY)
    assert small[kind][0].lossless


@ANY
@given(texts=st.lists(UNICODE, min_size=1, max_size=20), kind=st.sampled_from(sorted(PRE_TOKENIZERS)))
def test_small_ones_on_any_text(small, texts, kind):
    check(*small[kind], texts)


def characters_in_context(first, last):
    """Texts in which each character stands between letters, blanks, digits and signs, and begins a word."""
    codes = [code for code in range(first, last) if not 0xD800 <= code < 0xE000]
    parts = [f"a{c}b {c}{c} 1{c}  {c}'{c}s.{c}\n" for c in map(chr, codes)]
    return ["".join(parts[start : start + 64]) for start in range(0, len(parts), 64)]


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 0x3400),
        *(pytest.param(*ends, marks=pytest.mark.slow) for ends in [(0x3400, 0x1_0000), (0x1_0000, 0x3_4000)]),
        (0xE_0000, 0xE_0200),
    ],
)
def test_every_character_in_context(small, kind, first, last):
    tokenizer, library = small[kind]
    texts = characters_in_context(first, last)
    expected = [encoding.ids for encoding in library.encode_batch(texts, add_special_tokens=False)]
    assert graph_encode(tokenizer, texts) == expected


def test_no_letter_number_or_blank_from_where_the_table_ends():
    from tokenizers import Regex, pre_tokenizers

    text = "".join(map(chr, range(_ASSIGNED, sys.maxunicode + 1)))
    for split in (pre_tokenizers.Split(Regex(r"[\p{L}\p{N}\s]"), "isolated"), pre_tokenizers.Digits()):
        assert len(split.pre_tokenize_str(text)) == 1


def test_gpt2_gives_what_transformers_gives(gpt2, data_dir, tmp_path):
    from transformers import GPT2Tokenizer

    for name, content in zip(("vocab.json", "merges.txt"), gpt2_files(data_dir), strict=True):
        (tmp_path / name).write_bytes(content)
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path))
    check(gpt2, theirs.backend_tokenizer, UGLY)
    assert [gpt2.encode(text) for text in UGLY] == [theirs.encode(text) for text in UGLY]
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocabulary_size, gpt2.bos_id, gpt2.eos_id, gpt2.unk_id) == (50_257, 50_256, 50_256, None)
    assert (gpt2.add_bos, gpt2.stop_ids, gpt2.lossless, gpt2.chat_template) == (False, (50_256,), True, None)


@ANY
@given(texts=st.lists(UNICODE, min_size=1, max_size=10))
def test_gpt2_on_any_text(gpt2, texts):
    check(gpt2, gpt2._tokenizer, texts)


def test_smollm2_gives_what_its_own_file_gives(smollm2):
    check(*smollm2, UGLY)
    tokenizer = smollm2[0]
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id) == (49_152, 1, 2)
    assert (tokenizer.add_bos, tokenizer.stop_ids) == (False, (2, 0))
    assert "<|im_start|>assistant" in tokenizer.chat_template
    assert tokenizer.prompt_ids("") == [1]


@ANY
@given(texts=st.lists(UNICODE, min_size=1, max_size=10))
def test_smollm2_on_any_text(smollm2, texts):
    check(*smollm2, texts)


def test_smollm2_loses_the_bytes_it_has_no_tokens_for(smollm2):
    tokenizer = smollm2[0]
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("a\x04b\x06\x13\x14\x16\x1dc\0")) == "abc\0"


def test_smollm2_gives_what_llama_cpp_gives(smollm2):
    made = json.loads((Path(__file__).parent / "references" / "smollm2-135m-instruct.json").read_text())
    pairs = [(entry["text"], entry["ids"]) for entry in made["tokenized"]]
    pairs += [(entry["prompt"], entry["prompt_ids"]) for entry in made["continuations"]]
    assert len(pairs) >= 28
    assert [smollm2[0].encode(text) for text, _ in pairs] == [ids for _, ids in pairs]
    assert graph_encode(smollm2[0], [text for text, _ in pairs]) == [ids for _, ids in pairs]


# Merges


LETTERS = "abc"


@ANY
@given(data=st.data(), ignore_merges=st.booleans())
def test_any_list_of_merges(data, ignore_merges):
    """Also one in which a merge comes before those that make its parts: then rounds take one pair at a time."""
    alphabet = byte_alphabet()
    tokens, merges = [*LETTERS], []
    for _ in range(data.draw(st.integers(0, 12))):
        pair = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if len("".join(pair)) < 9 and " ".join(pair) not in merges:
            merges.append(" ".join(pair))
            tokens = list(dict.fromkeys([*tokens, "".join(pair)]))
    merges = data.draw(st.permutations(merges))
    vocabulary = [*dict.fromkeys([*alphabet, *tokens]), "<|endoftext|>"]
    content = tokenizer_json(
        {token: i for i, token in enumerate(vocabulary)}, merges, "gpt-2", {"<|endoftext|>": len(vocabulary) - 1}
    )
    content["model"]["ignore_merges"] = ignore_merges
    tokenizer = BytePairTokenizer.from_tokenizer_json(content)
    texts = data.draw(st.lists(st.text(LETTERS, max_size=30), min_size=1, max_size=20))
    check(tokenizer, reference(content), [*texts, "abcabc cba", "a" * 300])


def test_merges_out_of_order():
    """`ab c` is first, yet waits for `a b`, which loses its b to `b c` where it can."""
    tokens = [*byte_alphabet(), "ab", "abc", "bc", "<|endoftext|>"]
    ordered = BytePairTokenizer(tokens, ["a b", "b c", "ab c"], special_tokens=["<|endoftext|>"])
    late = BytePairTokenizer(tokens, ["ab c", "a b", "b c"], special_tokens=["<|endoftext|>"])
    for tokenizer in (ordered, late):
        assert tokenizer.encode("abcbc") == [257, 258] == graph_encode(tokenizer, ["abcbc"])[0]
    assert ordered._graph._ordered
    assert not late._graph._ordered


def test_a_long_word_takes_no_long_time(small):
    tokenizer = small["gpt-2"][0]
    word = "".join("thequickbrownfoxlaughed"[i * i % 23] for i in range(10_000))
    assert graph_encode(tokenizer, [word, "the"]) == [tokenizer.encode(word), tokenizer.encode("the")]


# Special tokens and bytes


def test_special_tokens_are_found_longest_first(small):
    tokenizer = small["llama-bpe"][0]
    ids = {token: tokenizer.tokens.index(token) for token in SPECIALS["llama-bpe"]}
    text = "<|eot_id|><|eot_id|>\n<|begin_of_text|>"
    expected = [ids["<|eot_id|>"], ids["<|eot_id|>\n"], ids["<|begin_of_text|>"]]
    assert tokenizer.encode(text) == expected == graph_encode(tokenizer, [text])[0]
    assert tokenizer.decode(expected) == ""


def test_user_tokens_stay_in_decoding():
    vocabulary = {token: i for i, token in enumerate([*byte_alphabet(), "<|endoftext|>"])}
    content = tokenizer_json(vocabulary, [], "gpt-2", {"<|endoftext|>": 256})
    content["added_tokens"] += [added("<tool 数>", 257, special=False), added("[a.b|c](?)\\1", 300, special=False)]
    tokenizer = BytePairTokenizer.from_tokenizer_json(content)
    text = "a<tool 数> [a.b|c](?)\\1[aXb<|endoftext|>"
    expected = tokenizer.encode(text)
    assert (expected.count(257), expected.count(300)) == (1, 1)
    assert graph_encode(tokenizer, [text]) == [expected]
    assert tokenizer.decode(expected) == text.removesuffix("<|endoftext|>") == graph_decode(tokenizer, [expected])[0]


@ANY
@given(texts=st.lists(st.binary(max_size=20), min_size=1, max_size=10))
@example(texts=[b"\xff\xfea", b"\xf0\x9f\x98", b"\xe6\x95 \xed\xa0\x80", b"\xc0\x80\xf4\x90\x80\x80"])
def test_invalid_bytes_count_as_replacement_characters(small, texts):
    tokenizer = small["gpt-2"][0]
    assert graph_encode(tokenizer, texts) == [tokenizer.encode(text.decode(errors="replace")) for text in texts]


def test_lone_surrogates_count_as_replacement_characters(small):
    assert small["smollm"][0].encode("a\ud800\udfffb") == small["smollm"][0].encode("a\ufffd\ufffdb")


@ANY
@given(rows=st.lists(st.lists(st.integers(-3, 405), max_size=30), min_size=1, max_size=20))
@example(rows=[[-1, 0, 400, 2**31 - 1], []])
def test_any_ids_decode_like_their_bytes(small, rows):
    tokenizer, library = small["smollm"]
    expected = [library.decode([i for i in row if i >= 0], skip_special_tokens=True) for row in rows]
    assert [tokenizer.decode(row) for row in rows] == expected
    assert graph_decode(tokenizer, rows) == expected


@ANY
@given(text=st.binary(max_size=12))
@example(text=b"\xe2\x28\xa1\xf0\x9f\x98A\xf5\xed\xa0\x80")
def test_broken_utf8_becomes_what_python_makes_of_it(small, text):
    tokenizer = small["gpt-2"][0]
    row = [tokenizer._ids[byte_alphabet()[byte]] for byte in text]
    assert tokenizer.decode(row) == text.decode(errors="replace") == graph_decode(tokenizer, [row])[0]


def test_a_model_may_have_more_ids_than_tokens(gpt2, data_dir):
    padded = BytePairTokenizer.from_files(*gpt2_files(data_dir), vocabulary_size=50_304)
    assert padded.vocabulary_size == 50_304
    ids = [50_303, *padded.encode("a b"), 50_257, 50_304]
    assert padded.decode(ids) == "a b" == graph_decode(padded, [ids])[0]
    assert padded.fingerprint != gpt2.fingerprint


# In a SavedModel


def test_saved_model_needs_tensorflow_alone(small, smollm2, tmp_path):
    import tensorflow as tf

    tokenizers = {kind: pair[0] for kind, pair in small.items()} | {"smollm2": smollm2[0]}
    signature = [tf.TensorSpec([None], tf.string)]

    def export(name, tokenizer):
        module = tf.Module()
        module.tokenizer = tokenizer.trackables()
        module.tokenize = tf.function(lambda texts: tokenizer.tokenize_prompts(texts).to_tensor(-1), signature)
        module.back = tf.function(lambda texts: tokenizer.detokenize(tokenizer.tokenize(texts)), signature)
        tf.saved_model.save(module, str(tmp_path / name))

    for name, tokenizer in tokenizers.items():
        export(name, tokenizer)
    (tmp_path / "texts.json").write_text(json.dumps(UGLY))
    script = """
        import json, pathlib, sys
        import tensorflow as tf
        folder = pathlib.Path(sys.argv[1])
        texts = tf.constant([text.encode() for text in json.loads((folder / "texts.json").read_text())])
        result = {}
        for name in sys.argv[2:]:
            module = tf.saved_model.load(str(folder / name))
            rows = [[i for i in row if i >= 0] for row in module.tokenize(texts).numpy().tolist()]
            result[name] = rows, [text.decode() for text in module.back(texts).numpy()]
        assert not {"kerasllm", "tensorflow_text", "tokenizers"} & set(sys.modules)
        (folder / "result.json").write_text(json.dumps(result))
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(script), str(tmp_path), *tokenizers]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    for name, tokenizer in tokenizers.items():
        rows = [tokenizer.prompt_ids(text) for text in UGLY]
        assert result[name] == [rows, [tokenizer.decode(row) for row in rows]]


def test_save_and_load(smollm2, tmp_path):
    smollm2[0].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == smollm2[0].fingerprint
    assert loaded.chat_template == smollm2[0].chat_template
    assert (loaded.stop_ids, loaded.bos_id, loaded.add_bos) == ((2, 0), 1, False)
    assert [loaded.encode(text) for text in UGLY] == [smollm2[0].encode(text) for text in UGLY]
