"""Split a causal language model into backbone and head, so that logits are computed only at chosen positions.

    logits = rule_n(... rule_1(W_head hidden))

Most models apply their head and stop; some then scale or cap the logits. Those rules are read from the
configuration, and the split is *tested* before it is used: if ``head(backbone(x))`` differs from the model's own
output, the whole model is run instead, which is correct but slower.

Left out: chunking over tokens, and the choice of which tokens (``train``, ``rollout``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.models.architecture_probes import probe_ids, probing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rule = Callable[[Tensor, float], Tensor]

# Configuration key -> the operation that its architecture applies to logits, in order.
OUTPUT_RULES: dict[str, Rule] = {
    "logits_scaling": lambda logits, scale: logits / scale,  # Granite
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
    "lm_head_multiplier": lambda logits, scale: logits * scale,  # Falcon-H1
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma 2
    "logits_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # RecurrentGemma
    "output_logit_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # xLSTM
}

PROBE_LOGIT = 50.0  # beyond every cap in use, so that an unknown cap shows


@dataclass(frozen=True)
class Head:
    """A model split into two halves whose composition equals the model.

    Both halves are looked up in the model at every use, so that a layer put in another's place (an adapter on the head)
    is the one that counts.

    Attributes:
        model: the whole model.
        rules: (rule, value) pairs applied to the projected logits.
        exact_split: false where ``hidden`` already holds full logits and ``logits`` changes nothing.
    """

    model: PreTrainedModel
    rules: tuple[tuple[Rule, float], ...] = ()
    exact_split: bool = True

    @property
    def backbone(self) -> nn.Module:
        """The model without the output projection; the whole model if there is no exact split."""
        return self.model.base_model if self.exact_split else self.model

    @property
    def projection(self) -> nn.Module:
        """The output projection; ``None`` if there is no exact split."""
        projection: nn.Module = self.model.get_output_embeddings() if self.exact_split else nn.Identity()  # type: ignore[no-untyped-call]
        return projection

    def hidden(self, memory: Any = None, **inputs: Any) -> Float[Tensor, "batch token width"]:
        """Compute the hidden states of every position.

        Args:
            memory: a cache of earlier tokens, filled in place.
            inputs: the model's own.
        """
        if memory is not None:
            from heliostat.models.transformers_internals import memory_argument

            inputs[memory_argument(self.backbone) or "past_key_values"] = memory
        output = self.backbone(**inputs)
        states: Tensor = output.last_hidden_state if self.exact_split else output.logits
        return states

    def logits(self, hidden: Float[Tensor, "*position width"]) -> Float[Tensor, "*position vocab"]:
        """Compute float32 logits of hidden states of any leading shape."""
        if self.exact_split:
            weight = next(self.projection.parameters())
            hidden = self.projection(hidden.to(weight.dtype))  # some recurrent backbones end in float32
            for rule, value in self.rules:
                hidden = rule(hidden, value)
        return hidden.float()


def completion_head(model: PreTrainedModel) -> Head:
    """Split a model into two halves and check them on a few tokens.

    Returns:
        The exact split, or with a warning the whole model under the same interface.

    **Limits**: ``head.logits(head.hidden(input_ids=x)) == model(x).logits`` to rounding, for every architecture.
    """
    config = model.config.get_text_config()
    projection: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    values = ((rule, getattr(config, key, None)) for key, rule in OUTPUT_RULES.items())
    rules = tuple((rule, value) for rule, value in values if value is not None)
    if model.base_model is not model and projection is not None:
        head = Head(model, rules)
        if _agrees(head, model):
            return head
    warnings.warn(
        f"{type(model).__name__}: logits cannot be computed apart from the backbone, so they are computed for every "
        f"position; training is correct but needs more memory and time",
        stacklevel=2,
    )
    return Head(model, exact_split=False)


def _agrees(head: Head, model: PreTrainedModel) -> bool:
    """Return whether both ways give the same logits, with hidden states scaled up until logit caps apply."""
    ids = probe_ids(model)
    with probing(model):
        output = head.backbone(input_ids=ids, use_cache=False)
        if getattr(output, "last_hidden_state", None) is None:
            return False
        gain = PROBE_LOGIT / head.logits(output.last_hidden_state).abs().max().clamp_min(1e-6).item()

        def amplify(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state * gain
            return output

        hook = head.backbone.register_forward_hook(amplify)
        try:
            expected = model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        actual = head.logits(output.last_hidden_state * gain)
    if actual.shape != expected.shape:
        return False
    # The same kernels on the same shapes: a few units in the last place are all the slack there is.
    slack = 8 * torch.finfo(model.dtype).eps * expected.abs().max().item()
    return bool((actual - expected.float()).abs().max() <= slack)
