"""Outliers and attention sinks for random models, so that they resemble trained ones.

Trained models have a few hidden channels that are far larger than the others, with norms that
scale them back, and a first token with a massive activation that most heads attend to and whose
value is nearly zero. Rounding behaves differently there; random weights show none of it.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SINK_TOKEN = 0  # a prompt that begins with it has a sink
CHANNELS = (3, 17, 40)  # those that are scaled
SINK_CHANNEL, CONSTANT_CHANNEL = 11, 29  # the sink token's mark; a value that all tokens share
FACTOR = 60.0
MASSIVE = 3000.0  # the sink token's activation
SINK_SCORE = 15.0  # what attention scores gain at the sink


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
    """Scale a norm's output; Gemma's weights are what is added to one."""
    if "Gemma" in type(norm).__name__:
        norm.weight.copy_((1 + norm.weight) * gains - 1)
    else:
        norm.weight.mul_(gains)
