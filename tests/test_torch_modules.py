"""The Transformers of PyTorch's tutorials, run in PyTorch: their weights in our models give their logits."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kerasllm.convert.torch_modules import from_torch_language_model, from_torch_seq2seq, to_torch_state_dict
from kerasllm.errors import InputError
from kerasllm.models import TransformerLanguageModel
from kerasllm.presets import preset

TOKENS, SOURCE_TOKENS = 31, 29


class PositionalEncoding(nn.Module):
    """PyTorch's, which the printed module uses without giving it."""

    def __init__(self, d_model, dropout=0.1, max_len=60):
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        pe, position = torch.zeros(max_len, d_model), torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0).transpose(0, 1))

    def forward(self, x):
        return self.dropout(x + self.pe[: x.size(0), :])


class TransformerModel(nn.Module):
    """As printed, but for what made it fail: `math` is imported, and the positions exist."""

    def __init__(self, ntoken, ninp, nhead, nhid, nlayers, dropout=0.5):
        super().__init__()
        from torch.nn import TransformerEncoder, TransformerEncoderLayer

        self.model_type = "Transformer"
        self.src_mask = None
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        encoder_layers = TransformerEncoderLayer(ninp, nhead, nhid, dropout)
        self.transformer_encoder = TransformerEncoder(encoder_layers, nlayers)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.ninp = ninp
        self.decoder = nn.Linear(ninp, ntoken)
        self.init_weights()

    def _generate_square_subsequent_mask(self, sz):
        mask = (torch.triu(torch.ones(sz, sz)) == 1).transpose(0, 1)
        return mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)

    def init_weights(self):
        initrange = 0.1
        self.encoder.weight.data.uniform_(-initrange, initrange)
        self.decoder.bias.data.zero_()
        self.decoder.weight.data.uniform_(-initrange, initrange)

    def forward(self, src):
        if self.src_mask is None or self.src_mask.size(0) != len(src):
            self.src_mask = self._generate_square_subsequent_mask(len(src)).to(src.device)
        src = self.encoder(src) * math.sqrt(self.ninp)
        src = self.pos_encoder(src)
        return self.decoder(self.transformer_encoder(src, self.src_mask))


class TokenEmbedding(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.embedding, self.width = nn.Embedding(tokens, width), width

    def forward(self, tokens):
        return self.embedding(tokens.long()) * math.sqrt(self.width)


class Seq2SeqTransformer(nn.Module):
    """`torch.nn.Transformer` as PyTorch's tutorial of translation wraps it."""

    def __init__(self, encoders, decoders, width, heads, inner, norm_first):
        super().__init__()
        sizes = {"num_encoder_layers": encoders, "num_decoder_layers": decoders, "dim_feedforward": inner}
        self.transformer = nn.Transformer(width, heads, **sizes, norm_first=norm_first, dropout=0.1)
        self.generator = nn.Linear(width, TOKENS)
        self.src_tok_emb, self.tgt_tok_emb = TokenEmbedding(SOURCE_TOKENS, width), TokenEmbedding(TOKENS, width)
        self.positional_encoding = PositionalEncoding(width)

    def forward(self, source, target, source_padding):
        mask = nn.Transformer.generate_square_subsequent_mask(len(target))
        embedded = [self.positional_encoding(e) for e in (self.src_tok_emb(source), self.tgt_tok_emb(target))]
        padding = {"src_key_padding_mask": source_padding, "memory_key_padding_mask": source_padding}
        return self.generator(self.transformer(*embedded, tgt_mask=mask, **padding))


def shaken(module, seed=0):
    """The module in evaluation, with random numbers for every weight: biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_((weight.dim() == 1) * 1.0 + 0.3 * torch.randn(weight.shape, generator=generator))
    return module.eval()


def text(rows, length, size, seed=0):
    return np.random.default_rng(seed).integers(0, size, (rows, length)).astype("int32")


@pytest.fixture(scope="module")
def printed():
    return shaken(TransformerModel(TOKENS, 16, 4, 24, 3))


def test_the_printed_module_gives_the_same_logits(printed):
    model, tokens = from_torch_language_model(printed.state_dict(), num_heads=4), text(2, 11, TOKENS)
    with torch.no_grad():
        expected = printed(torch.tensor(tokens.T, dtype=torch.long)).numpy().transpose(1, 0, 2)
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.array(model(tokens)), expected, atol=1e-4, rtol=1e-4)
    # Token after token, from the cache.
    state, steps = model.initial_state(2, 11), []
    for column in range(11):
        logits, state = model(tokens[:, column : column + 1], state=state)
        steps.append(np.array(logits))
    np.testing.assert_allclose(np.concatenate(steps, 1), expected, atol=1e-4, rtol=1e-4)


def test_its_weights_come_from_a_safetensors_file_and_go_back(printed, tmp_path):
    weights = {name: value.contiguous() for name, value in printed.state_dict().items()}
    save_file(weights, tmp_path / "module.safetensors")
    model = from_torch_language_model(tmp_path / "module.safetensors", num_heads=4)
    back = to_torch_state_dict(model)
    assert set(back) == set(weights) - {"pos_encoder.pe"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name].numpy(), err_msg=name)
    again = TransformerModel(TOKENS, 16, 4, 24, 3)
    again.load_state_dict({name: torch.tensor(array) for name, array in back.items()}, strict=False)
    tokens = torch.tensor(text(1, 5, TOKENS).T, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens), printed(tokens))


def test_the_preset_is_the_printed_module(printed):
    values = preset("transformer_pytorch")["config"]
    sizes = (values[name] for name in ("vocabulary_size", "hidden_dim", "num_heads", "intermediate_dim", "num_layers"))
    with torch.device("meta"):
        count = sum(weight.numel() for weight in TransformerModel(*sizes).parameters())
    ours = from_torch_language_model(printed.state_dict(), num_heads=4).config.to_dict()
    varied = {"vocabulary_size", "hidden_dim", "num_heads", "intermediate_dim", "num_layers", "dropout", "final_norm"}
    made = TransformerLanguageModel.from_preset("transformer_pytorch")
    theirs = made.config.to_dict()
    assert {k: v for k, v in ours.items() if k not in varied} == {k: v for k, v in theirs.items() if k not in varied}
    made.build()
    assert made.count_params() == count


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_torch_nn_transformer_gives_the_same_logits(norm_first, final_norm):
    module = shaken(Seq2SeqTransformer(2, 3, 16, 4, 24, norm_first))
    if not final_norm:
        module.transformer.encoder.norm = module.transformer.decoder.norm = None
    model = from_torch_seq2seq(module.state_dict(), num_heads=4, norm_first=norm_first)
    source, target = text(3, 7, SOURCE_TOKENS, seed=1), text(3, 5, TOKENS, seed=2)
    mask = np.arange(7)[None] < np.array([[7], [4], [1]])
    with torch.no_grad():
        arguments = (torch.tensor(source.T), torch.tensor(target.T), torch.tensor(~mask))
        expected = module(*arguments).numpy().transpose(1, 0, 2)
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.array(model((source, target, mask))), expected, atol=1e-4, rtol=1e-4)
    back, weights = to_torch_state_dict(model), module.state_dict()
    assert set(back) == set(weights) - {"positional_encoding.pe"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name].numpy(), err_msg=name)


def test_other_modules_are_refused_in_one_line(printed):
    weights = {name: value.numpy() for name, value in printed.state_dict().items()}
    lacking = {name: value for name, value in weights.items() if name != "decoder.bias"}
    for given, message in (
        ({}, "state_dict: lacks matrix encoder.weight"),
        (lacking, "lacks tensor decoder.bias"),
        ({**weights, "more.weight": np.zeros(3, "float32")}, "tensor more.weight has no place"),
        ({**weights, "encoder.weight": np.zeros((31, 8), "float32")}, "has shape"),
    ):
        with pytest.raises(InputError, match=message) as error:
            from_torch_language_model(given, num_heads=4)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="needs positions 'sine', the model has 'rotary'"):
        to_torch_state_dict(TransformerLanguageModel.from_preset("llama_tiny"))
