"""The shape of a Llama or of a model of a similar family."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The differences between a family of models and the others.

    Attributes:
      architecture: The beginning of the names of its classes in transformers.
      qkv_bias: Whether queries, keys and values have biases.
      head_norm: Whether the queries and keys of each head are normalised before they are rotated.
      fixed: Keys of `config.json` of which only one value is supported, with this value.
      defaults: The defaults of transformers for keys that are absent.
    """

    architecture: str
    qkv_bias: bool = False
    head_norm: bool = False
    fixed: Mapping[str, Any]
    defaults: Mapping[str, int] = dataclasses.field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        architecture="Llama",
        fixed={"attention_bias": False, "mlp_bias": False},
        defaults={"max_position_embeddings": 2048},
    ),
    "mistral": Family(
        architecture="Mistral",
        fixed={},
        defaults={
            "max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096
        },
    ),
    "qwen2": Family(
        architecture="Qwen2",
        qkv_bias=True,
        fixed={"use_sliding_window": False},
        defaults={"max_position_embeddings": 32_768, "num_key_value_heads": 32},
    ),
    "qwen3": Family(
        architecture="Qwen3",
        head_norm=True,
        fixed={"attention_bias": False, "use_sliding_window": False},
        defaults={"max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128},
    ),
}  # fmt: skip
"""The families by `model_type`."""

_MOST = 1 << 31
_ORIGINAL = "original_max_position_embeddings"
_FIXED = {"hidden_act": "silu", "quantization_config": None}
"""The same as `Family.fixed`, for all families."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """The scaling of rotary frequencies of Llama 3.1 (`llama.stretched`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """The shape of a Llama-family model.

    Attributes:
      family: One of `FAMILIES`.
      vocab_size: V, the number of rows of the embedding.
      d_model: D, the width of hidden states.
      num_layers: L, the number of layers.
      num_heads: N, the number of query heads.
      num_kv_heads: K, the number of key and value heads; N is a multiple of it.
      head_dim: H, the width of a head, even. N * H need not be D.
      d_ff: F, the width of the feed-forward network.
      rope_theta: Base of the rotary wavelengths.
      rope_scaling: The scaling of Llama 3.1, or None.
      norm_eps: The number that norms add to the mean square.
      tie_embeddings: Whether the logits use the embedding.
      max_positions: Longest sequence that the model was trained for, in tokens.
      sliding_window: Number of tokens that a token of Mistral attends to, itself included; None for
        all earlier ones.
    """

    family: str = "llama"
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 8192
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "d_model",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "d_ff",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    field=f"model.{name}", value=getattr(self, name), expected="at least 1"
                )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"must divide num_heads, {self.num_heads}",
                field="model.num_kv_heads",
                value=self.num_kv_heads,
            )
        if self.head_dim % 2:
            raise UserError(field="model.head_dim", value=self.head_dim, expected="even")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"sliding_window: must be at least 1, not {self.sliding_window}")

    @property
    def traits(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.family]

    @property
    def longest(self) -> int:
        """The longest sequence that the forward pass supports, in tokens.

        The sliding window is not implemented. Sequences within it give the same result without it.
        """
        return min(self.max_positions, self.sliding_window or self.max_positions)

    def check_length(self, field: str, tokens: int, model: str = "the model") -> None:
        """Refuses sequences longer than `longest`.

        Args:
          field: The field that decides the length, for the message.
          tokens: The length.
          model: The model's name, for the message.

        Raises:
          UserError: They are longer.
        """
        if tokens > self.longest:
            reason = "" if self.longest == self.max_positions else " (its sliding window)"
            raise UserError(
                f"must be at most {self.longest}, the longest input of {model}{reason}",
                field=field,
                value=tokens,
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Returns the shape that a Hugging Face `config.json` describes, old spelling or new.

        Args:
          config: The contents of the file.

        Raises:
          UserError: The architecture or the kind of rotary scaling is not supported, or a key is
            missing or wrong; the message begins with the key.
        """
        name = config.get("model_type")
        if not isinstance(name, str) or name not in FAMILIES:
            raise UserError(f"model_type: must be one of {', '.join(FAMILIES)} (got {name!r})")
        family = FAMILIES[name]
        for key, wanted in {**_FIXED, **family.fixed}.items():
            if config.get(key, wanted) != wanted:
                raise UserError(f"{key}: only {wanted!r} is supported, not {config[key]!r}")
        _check_layer_types(config)
        given = {**family.defaults, **config}
        num_heads, num_kv_heads, head_dim = _heads(given)
        windowed = given.get("sliding_window") if "sliding_window" in family.defaults else None
        max_positions = _int(given, "max_position_embeddings")
        norm_eps = _float(config, "rms_norm_eps", 1e-6)
        if norm_eps < 0:
            raise UserError(f"rms_norm_eps: must not be negative (got {norm_eps})")
        rope_theta, rope_scaling = _rope(config, max_positions)
        return cls(
            family=name,
            vocab_size=_int(config, "vocab_size"),
            d_model=_int(config, "hidden_size"),
            num_layers=_int(config, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            d_ff=_int(config, "intermediate_size"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=norm_eps,
            tie_embeddings=_bool(config, "tie_word_embeddings"),
            max_positions=max_positions,
            sliding_window=None if windowed is None else _int(given, "sliding_window"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that old and new versions of transformers read."""
        scaling = self.rope_scaling
        contents = {
            "architectures": [f"{self.traits.architecture}ForCausalLM"],
            "model_type": self.family,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "rope_theta": self.rope_theta,
            "rope_scaling": None
            if scaling is None
            else {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            },
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_positions,
            **self.traits.fixed,
        }
        if "sliding_window" in self.traits.defaults:
            contents["sliding_window"] = self.sliding_window
        return contents


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the query heads, the key and value heads, and the size of each."""
    num_heads = _int(config, "num_attention_heads")
    num_kv_heads = _int(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise UserError(
            f"num_key_value_heads: must divide num_attention_heads, {num_heads} (got "
            f"{num_kv_heads})"
        )
    head_dim = _int(config, "head_dim", _int(config, "hidden_size") // num_heads)
    if head_dim % 2:
        raise UserError(f"head_dim: must be even (got {head_dim})")
    return num_heads, num_kv_heads, head_dim


def _rope(config: Mapping[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """Returns the base of the rotary wavelengths and their scaling, as transformers reads them.

    Before version 5 theta was a key of its own and `rope_scaling` held the rest; since then
    `rope_parameters` holds both. If both are given, `rope_scaling` replaces `rope_parameters` as a
    whole, its theta included.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(name) or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{name}: must be a mapping, not {rope!r}")
    for key, value in rope.items():
        if isinstance(value, Mapping):
            raise UserError(f"{name}.{key}: scaling by layer type is not supported")
    for where, given in (("", config), (f"{name}.", rope)):
        if given.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{where}partial_rotary_factor: only 1.0 is supported, not "
                f"{given['partial_rotary_factor']!r}"
            )
    theta = _positive({"rope_theta": 10_000.0, **config, **rope}, "rope_theta")
    kind = rope["rope_type"] if "rope_type" in rope else rope.get("type", "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{name}: type {kind!r} is not supported; default and llama3 are")
    return theta, _llama3(name, {**config, **_only_given(config, rope)}, max_positions)


def _only_given(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scaling without its original length if `config.json` has a key for that."""
    return {k: v for k, v in rope.items() if k != _ORIGINAL or k not in config}


def _llama3(name: str, rope: Mapping[str, Any], max_positions: int) -> RopeScaling:
    try:
        _positive({_ORIGINAL: max_positions, **rope}, _ORIGINAL)
        scaling = RopeScaling(
            factor=_positive(rope, "factor"),
            low_freq_factor=_positive(rope, "low_freq_factor"),
            high_freq_factor=_positive(rope, "high_freq_factor"),
            original_max_positions=_int({_ORIGINAL: max_positions, **rope}, _ORIGINAL),
        )
    except UserError as error:
        raise UserError(f"{name}.{error}") from None
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(
            f"{name}.high_freq_factor: must be larger than low_freq_factor, "
            f"{scaling.low_freq_factor} (got {scaling.high_freq_factor})"
        )
    return scaling


def _check_layer_types(config: Mapping[str, Any]) -> None:
    layer_types = config.get("layer_types") or ()
    if not isinstance(layer_types, Sequence) or any(x != "full_attention" for x in layer_types):
        raise UserError(f"layer_types: only full_attention is supported, not {layer_types!r}")


def _positive(config: Mapping[str, Any], key: str) -> float:
    """Returns a positive number; null is an error, as in transformers."""
    if key in config and config[key] is None:
        raise UserError(f"{key}: must be a number, not null; delete the key if it is not known")
    value = _float(config, key)
    if value <= 0:
        raise UserError(f"{key}: must be positive (got {value})")
    return value


def _bool(config: Mapping[str, Any], key: str) -> bool:
    """Returns a boolean; absent and null are false."""
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise UserError(f"{key}: must be true or false, not {value!r}")
    return bool(value)


def _int(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Returns a size, a whole number from 1 to 2^31 - 1."""
    value = _float(config, key, default)
    if value != int(value):
        raise UserError(f"{key}: must be a whole number, not {value}")
    if not 1 <= value < _MOST:
        raise UserError(f"{key}: must be at least 1 and below {_MOST} (got {value:g})")
    return int(value)


def _float(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Returns a number; null counts as absent, as it does in transformers."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"{key}: missing")
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{key}: must be a number, not {value!r:.40}")
    return float(value)
