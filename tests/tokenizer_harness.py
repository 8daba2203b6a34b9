"""What the tests of tokenizers share: ugly texts, SentencePiece models as others train them, the graph face."""

import io

import sentencepiece
from hypothesis import strategies as st

TEXTS = [
    "The quick brown fox, who was tired, didn't jump over 12,345 lazy dogs. It slept; the dogs laughed (a lot).",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。维基百科，自由的百科全书！",
] * 20

UGLY = [
    "",
    " ",
    "  two  blanks  ",
    "Once upon a time,\n\n\tthere was  a girl.",
    "▁",
    "▁▁a▁ ▁b",
    " ▁<0x41><unk><s></s> x",
    "a\0b\0",
    "\x01\x1b[0m\x7f\x85",
    "😀👨‍👩‍👧🏳️‍🌈🇨🇳",
    "e\u0301 é ﬁ ① Å ａｂｃ ｶﾞ ㍿",
    "\ufeffBOM\ufeff\ufffd\ufffe\uffff\U0010ffff\ue000",
    "\u00a0\u1680\u2003\u2028\u2029\u3000\u200b",
    "数学 is 数学，「數學」。",
    "def f(x):\n    return x  # 4 blanks",
    "a" * 500,
]
UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\0▁aeot数，.'é😀ﬁ")), max_size=30)


def train(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


LLAMA = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True}
FOREIGN = {
    "llama": {**LLAMA, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
    "nmt_nfkc": LLAMA,
    "nmt_nfkc_cf": {**LLAMA, "normalization_rule_name": "nmt_nfkc_cf", "user_defined_symbols": ["<sep>", "ab"]},
    "no bytes": {"model_type": "bpe", "vocab_size": 150},
    "unigram": {"vocab_size": 350, "byte_fallback": True, "normalization_rule_name": "identity"},
    "suffix": {**LLAMA, "treat_whitespace_as_suffix": True},
}


class Quiet(dict):
    """Does not fill the terminal with models when a property fails."""

    def __repr__(self):
        return f"<{len(self)} models>"


def graph_encode(tokenizer, texts):
    import tensorflow as tf

    return tokenizer.tokenize(tf.constant([text.encode() for text in texts], tf.string)).to_list()


def graph_decode(tokenizer, rows):
    import tensorflow as tf

    ids = tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)
    return [text.decode() for text in tokenizer.detokenize(ids).numpy()]


def check_faces(tokenizer, texts, expected, decoded):
    assert [tokenizer.encode(text) for text in texts] == expected
    assert graph_encode(tokenizer, texts) == expected
    assert [tokenizer.decode(row) for row in expected] == decoded
    assert graph_decode(tokenizer, expected) == decoded
