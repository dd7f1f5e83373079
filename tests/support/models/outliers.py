"""Outliers and attention sinks for random models, so that they resemble trained ones.

Trained models have a few hidden channels that are far larger than the others, with norms that
scale them back, and a first token with a massive activation that most heads attend to and whose
value is nearly zero. Rounding behaves differently there; random weights show none of it.

`inject` needs a Llama-like family, whose heads it makes attend to the sink; `enlarge` takes any.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SINK_TOKEN = 0  # a prompt that begins with it has a sink
CHANNELS = (3, 17, 40)  # those that are scaled
SINK_CHANNEL, CONSTANT_CHANNEL = 11, 29  # the sink token's mark; a value that all tokens share
FACTOR = 60.0
MASSIVE = 3000.0  # the sink token's activation
SINK_SCORE = 15.0  # what attention scores gain at the sink
CHANNEL_SIZE = 1000.0  # of outlier channels where an embedding begins the hidden states
SHARES = (0.5, -1.0, 0.5)  # of it, by channel; with another sum a LayerNorm would see only theirs
# Families whose hidden states come from norms, not from sums that only their readers norm.
POST_NORM = ("bart", "marian", "blenderbot-small", "mvp")


@torch.no_grad()
def inject(model: PreTrainedModel) -> PreTrainedModel:
    """Give a random model of a Llama-like family outlier channels and a first-token sink.

    Its layers must have q_proj, k_proj, v_proj and o_proj. Changes the model and returns it.
    """
    scale_channels(model)
    add_sink(model)
    return model


@torch.no_grad()
def scale_channels(
    model: PreTrainedModel, channels: tuple[int, ...] = CHANNELS, factor: float = FACTOR
) -> None:
    """Scale hidden channels wherever they are written, and norms so that readers see the same."""
    gains = torch.ones(model.config.hidden_size)
    gains[list(channels)] = factor
    embedding = model.get_input_embeddings()
    embedding.weight.mul_(gains)
    for layer in model.model.layers:
        _scale_writers(layer, gains)
    # Outliers enlarge the mean square, which would shrink every other channel.
    size = gains.square().mean().sqrt()
    for norm in [norm for layer in model.model.layers for norm in _readers(layer)]:
        _scale_norm(norm, size / gains)
    is_tied = model.get_output_embeddings().weight is embedding.weight
    _scale_norm(model.model.norm, size / (gains * gains if is_tied else gains))


@torch.no_grad()
def add_sink(model: PreTrainedModel, score: float = SINK_SCORE) -> None:
    """Make every head attend to SINK_TOKEN at the start of a prompt, as trained models do."""
    marks = [SINK_CHANNEL, CONSTANT_CHANNEL]
    embedding = model.get_input_embeddings().weight
    embedding[:, SINK_CHANNEL] = 0
    embedding[:, CONSTANT_CHANNEL] = embedding.square().mean().sqrt() * 10
    embedding[SINK_TOKEN, SINK_CHANNEL] = MASSIVE
    factors = torch.ones(model.config.hidden_size)
    factors[marks] = 0
    for layer in model.model.layers:
        _scale_writers(layer, factors)
        layer.self_attn.v_proj.weight[:, marks] = 0
        _scale_norm(_readers(layer)[1], factors)  # the MLP does not read the marks
    _scale_norm(model.model.norm, factors)
    ids = torch.arange(2, 34)[None]
    ids[0, 0] = SINK_TOKEN
    for layer in model.model.layers:
        _attend_to_sink(model, layer.self_attn, ids, score)


def _attend_to_sink(
    model: PreTrainedModel, attention: nn.Module, ids: Tensor, score: float
) -> None:
    """Let queries and the sink's key agree in the dimension that rotates least."""
    dim = attention.head_dim
    inputs: list[Tensor] = []
    hook = attention.q_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    model(input_ids=ids, use_cache=False)
    hook.remove()
    [states] = inputs
    size = (score / attention.scaling) ** 0.5
    for projection, channel, rows in (
        (attention.q_proj, CONSTANT_CHANNEL, states[1:]),
        (attention.k_proj, SINK_CHANNEL, states[:1]),
    ):
        weight = projection.weight.view(-1, dim, projection.in_features)
        weight[:, :, [SINK_CHANNEL, CONSTANT_CHANNEL]] = 0
        weight[:, dim // 2 - 1] = 0
        weight[:, dim // 2 - 1, channel] = size / rows[:, channel].mean()
        weight[:, dim - 1] = 0
    gains = torch.ones(dim)
    gains[dim // 2 - 1] = size / dim**0.5
    for name in ("q_norm", "k_norm"):  # a norm of heads would take the agreement back
        if hasattr(attention, name):
            _scale_norm(getattr(attention, name), gains)


def _readers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the norms through which attention and MLP read the hidden states."""
    before_mlp = "pre_feedforward_layernorm"
    name = before_mlp if hasattr(layer, before_mlp) else "post_attention_layernorm"
    return layer.input_layernorm, getattr(layer, name)


def _scale_writers(layer: nn.Module, gains: Tensor) -> None:
    """Scale what a layer adds to each hidden channel."""
    if hasattr(layer, "pre_feedforward_layernorm"):  # its outputs go through norms
        _scale_norm(layer.post_attention_layernorm, gains)
        _scale_norm(layer.post_feedforward_layernorm, gains)
        return
    for name, parameter in layer.named_parameters():
        if {"o_proj", "down_proj"} & set(name.split(".")):
            parameter.mul_(gains if name.endswith("bias") else gains[:, None])


def _scale_norm(norm: nn.Module, gains: Tensor) -> None:
    """Scale a norm's output; the weights of some are what is added to one."""
    if isinstance(norm, nn.LayerNorm) or not _adds_one(norm):
        norm.weight.mul_(gains)
    else:
        norm.weight.copy_((1 + norm.weight) * gains - 1)


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm with weights of zero puts out anything."""
    kept = norm.weight.clone()
    norm.weight.zero_()
    out = norm.forward(torch.ones(1, 1, len(kept)))
    norm.weight.copy_(kept)
    return bool(out.any())


@torch.no_grad()
def enlarge(model: PreTrainedModel) -> PreTrainedModel:
    """Give a random model of any family outlier channels and a massive first token.

    Embeddings, where the hidden states begin, get both. Every norm is adjusted to the states that
    it meets, so that its readers see numbers as large as before. Norms that make the hidden states
    themselves get outlier channels, which their readers scale back. Changes the model and returns
    it.
    """
    if model.config.model_type in POST_NORM:
        _enlarge_norms(model)
        return model
    before = _run_norms(model)
    generator = torch.Generator().manual_seed(5)
    width = model.get_input_embeddings().embedding_dim
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape[-1] == width:
            noise = torch.randn(len(module.weight), len(CHANNELS), generator=generator)
            sizes = CHANNEL_SIZE * torch.tensor(SHARES)
            module.weight[:, list(CHANNELS)] = sizes * (1 + 0.01 * noise)
            module.weight[SINK_TOKEN, SINK_CHANNEL] = MASSIVE
    _run_norms(model, before)
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        gains = torch.ones(width)
        gains[list(CHANNELS)] = 1 / CHANNEL_SIZE
        gains[SINK_CHANNEL] = 0
        _scale_norm([*before][-1], gains)
    return model


def _run_norms(
    model: PreTrainedModel, wanted: dict[nn.Module, float] | None = None
) -> dict[nn.Module, float]:
    """Run a model; return its norms of hidden states in order, with the size of their outputs.

    Each norm is first adjusted to give outputs of the size that `wanted` has for it.
    """
    width = model.get_input_embeddings().embedding_dim
    sizes: dict[nn.Module, float] = {}

    def meet(norm: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        if norm in sizes or args[0].shape[-1] != width:
            return
        if wanted is not None:
            _fit_norm(norm, wanted[norm], args[0], makes_states="embed" in name)
        out = norm.forward(args[0]).reshape(-1, width)[1:]
        sizes[norm] = float(out.square().mean().sqrt())

    with ExitStack() as stack:
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if "Norm" in type(module).__name__ and weight is not None and len(weight) == width:
                hook = module.register_forward_pre_hook(
                    lambda norm, args, name=name: meet(norm, args, name)
                )
                stack.callback(hook.remove)
        run(model)
    return sizes


def run(model: PreTrainedModel, **options: bool) -> Any:
    """Run a model on a prompt that begins with the sink token."""
    ids = torch.tensor([[SINK_TOKEN, *range(20, 60)]])
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, decoder_input_ids=ids, **options)
    return model(input_ids=ids, **options)


def _fit_norm(norm: nn.Module, size: float, states: Tensor, *, makes_states: bool) -> None:
    """Scale a norm so that its outputs for these states have a size in every channel.

    One that makes the hidden states has larger outputs in the outlier channels. The massive first
    token keeps outputs that are a few times as large as others.
    """
    channels = list(CHANNELS)
    out = norm.forward(states).reshape(-1, states.shape[-1])[1:]
    sizes = out.square().mean(0).sqrt()
    gains = torch.full_like(sizes, size / sizes.median())
    wanted = CHANNEL_SIZE * torch.tensor(SHARES).abs() if makes_states else size
    gains[channels] = wanted / sizes[channels]
    gains[SINK_CHANNEL] = size
    _scale_norm(norm, gains)


def _enlarge_norms(model: PreTrainedModel) -> None:
    """Scale outlier channels in all norms, and back in what reads hidden states."""
    width = model.get_input_embeddings().embedding_dim
    gains = torch.ones(width)
    gains[list(CHANNELS)] = FACTOR
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            _scale_norm(module, gains)
            module.bias.mul_(gains)
        elif isinstance(module, nn.Linear) and name.endswith(("q_proj", "k_proj", "v_proj", "fc1")):
            module.weight.div_(gains)
