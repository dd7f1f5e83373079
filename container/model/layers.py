"""Decoder layers of the Llama family in few operations.

Models of that family (Llama, Mistral, Qwen 2 and 3, SmolLM ...) share one layer:

    x = x + o(attend(rotate(norm(q)), rotate(norm(k)), v))      q, k, v of norm(x)
    x = x + down(act(gate) * up)                                gate, up of norm(x)

A step of a small model on a CPU is bound by the number of operations, not by their size, so here
there are four products, and what lies between them (glue.py) is done in few operations of torch or,
where they can, by the compiled kernels.
Which layers may be replaced is not looked up in a list: a layer must have these parts, and must
be as accurate as the model's own on the same input (reference_check.py).
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from container.errors import one_line
from container.model.attention import PagedStep, Rule
from container.model.fused_glue import FusedGlue, fits
from container.model.glue import Angles, Glue, LayerFacts, Norm
from container.model.kernels import Kernels, find_kernels
from container.model.packing import (
    FastLinear,
    MakeLinear,
    is_plain_rms_norm,
    joined_linear,
    norm_eps,
)
from container.model.reference_check import LayerTrial

log = logging.getLogger(__name__)

LAYER_NORMS = {"input_layernorm", "post_attention_layernorm"}
LAYER_PARTS = LAYER_NORMS | {"self_attn", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

MakeGlue = Callable[[LayerFacts], Glue]
Products = tuple[FastLinear, FastLinear, FastLinear, FastLinear]


class LeanLayer(nn.Module):
    """One decoder layer: `qkv`, `o`, `gate_up` and `down`, and what lies between them."""

    def __init__(self, facts: LayerFacts, products: Products) -> None:
        super().__init__()
        self.qkv, self.o, self.gate_up, self.down = products
        # As a tuple they are found without a module's slow look-up.
        self.products = products
        self.facts = facts
        self.glue = Glue(facts)

    @classmethod
    def of(cls, layer: nn.Module, rules: list[Rule], make: MakeLinear) -> "LeanLayer":
        """The same as a layer that has the parts named above."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        products = (
            joined_linear([attention.q_proj, attention.k_proj, attention.v_proj], make),
            joined_linear([attention.o_proj], make),
            joined_linear([mlp.gate_proj, mlp.up_proj], make),
            joined_linear([mlp.down_proj], make),
        )
        lean = cls(_facts(layer, rules[attention.layer_idx]), products)
        if hasattr(layer, "attention_type"):
            lean.attention_type = layer.attention_type
        return lean

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: Angles,
        step: PagedStep,
        **_: object,
    ) -> torch.Tensor:
        """Compute [1, tokens, hidden] from the same."""
        glue = self.glue
        qkv, o, gate_up, down = self.products
        x = hidden_states.squeeze(0).contiguous()
        seen = glue.attention(qkv(glue.before_attention(x, step)), position_embeddings, step)
        x, normed = glue.before_gate(x, o(seen), step)
        return glue.after(x, down(glue.gated(gate_up(normed), step)), step).unsqueeze(0)

    def fuse(self, kernels: Kernels | None) -> None:
        """Use the kernels from now on, if there are any that can."""
        self.glue = Glue(self.facts)
        if kernels is not None and fits(self.facts):
            self.glue = FusedGlue(self.facts, kernels)


def find_lean(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with the parts of the family, by name."""
    return {name: module for name, module in model.named_modules() if _has_parts(module)}


@torch.inference_mode()
def make_lean(
    model: nn.Module,
    rules: list[Rule],
    trial: LayerTrial,
    make: MakeLinear,
    make_exact: MakeLinear,
) -> None:
    """Replace layers in place, kind by kind, where the checked ones stay as accurate.

    `rules` has what each layer tells its attention. `make_exact` makes products with the weights
    as they are, for the comparison.
    """
    kinds: dict[Hashable, list[str]] = defaultdict(list)
    for name in find_lean(model):
        kinds[trial.kinds.get(name)].append(name)
    for names in kinds.values():
        checked = [name for name in names if name in trial.checked]
        make_glue = _choose_glue(model, checked, rules, trial, make_exact)
        if make_glue is None:
            continue
        for name in names:
            layer = model.get_submodule(name)
            if not isinstance(layer, LeanLayer):
                _replace(model, name, _lean(layer, rules, make, make_glue))
        log.debug("replaced %d decoder layers", len(names))


def _choose_glue(
    model: nn.Module,
    names: list[str],
    rules: list[Rule],
    trial: LayerTrial,
    make: MakeLinear,
) -> MakeGlue | None:
    """Find the fastest that may lie between the products of these layers; None if none may.

    The layers stay as they are.
    """
    layers = {name: model.get_submodule(name) for name in names}
    try:
        leans = {name: LeanLayer.of(layer, rules, make) for name, layer in layers.items()}
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        log.debug("layers stay as they are: %s", error)
        return None
    try:
        for name, lean in leans.items():
            _replace(model, name, lean)
        for make_glue in _glues(leans[names[0]].facts) if names else ():
            if _is_accurate(leans, make_glue, trial):
                return make_glue
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)
    return None


def _is_accurate(leans: dict[str, LeanLayer], make_glue: MakeGlue, trial: LayerTrial) -> bool:
    try:
        for lean in leans.values():
            lean.glue = make_glue(lean.facts)
        accuracy = trial.measure(list(leans))
    except Exception as error:  # compilers and drivers have their own
        log.info("a faster form of the layers is not used: %s", one_line(error))
        return False
    if not accuracy.is_accepted:
        glue = type(next(iter(leans.values())).glue).__name__
        log.info("layers with %s are not used: off by %s", glue, accuracy)
    return accuracy.is_accepted


def _glues(facts: LayerFacts) -> Iterator[MakeGlue]:
    """What may lie between a layer's products, the fastest first."""
    kernels = find_kernels()
    if kernels is not None and fits(facts):
        yield partial(FusedGlue, kernels=kernels)
    if facts.norms[0][0].is_cuda and find_spec("triton") is not None:
        from container.model import triton_glue  # only where Triton is

        if triton_glue.fits(facts):
            yield triton_glue.TritonGlue
    yield Glue


def _lean(layer: nn.Module, rules: list[Rule], make: MakeLinear, make_glue: MakeGlue) -> LeanLayer:
    lean = LeanLayer.of(layer, rules, make)
    lean.glue = make_glue(lean.facts)
    return lean


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _has_parts(module: nn.Module) -> bool:
    if {name for name, _ in module.named_children()} != LAYER_PARTS:
        return False
    attention: Any = module.self_attn
    mlp: Any = module.mlp
    parts = {name for name, _ in attention.named_children()}
    if parts - HEAD_NORMS != ATTENTION_PARTS or parts & HEAD_NORMS not in (set(), HEAD_NORMS):
        return False
    if {name for name, _ in mlp.named_children()} != MLP_PARTS:
        return False
    linears = [attention.get_submodule(name) for name in ATTENTION_PARTS]
    linears += [mlp.get_submodule(name) for name in MLP_PARTS - {"act_fn"}]
    norms = [module.get_submodule(name) for name in LAYER_NORMS]
    norms += [attention.get_submodule(name) for name in parts & HEAD_NORMS]
    are_plain = all(type(linear) is nn.Linear for linear in linears)
    return are_plain and all(map(is_plain_rms_norm, norms))


def _facts(layer: Any, rule: Rule) -> LayerFacts:
    attention = layer.self_attn
    dim: int = attention.head_dim
    heads, kv_heads = (one.out_features // dim for one in (attention.q_proj, attention.k_proj))
    head_norm = None
    if hasattr(attention, "q_norm"):
        (of_q, eps), (of_k, _) = _norm(attention.q_norm), _norm(attention.k_norm)
        head_norm = torch.cat([of_q.expand(heads, -1), of_k.expand(kv_heads, -1)]), eps
    norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    index: int = attention.layer_idx
    return LayerFacts(index, heads, kv_heads, dim, rule, norms, head_norm, layer.mlp.act_fn)


def _norm(module: Any) -> Norm:
    return module.weight.detach(), norm_eps(module)
