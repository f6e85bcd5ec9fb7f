"""What the configs of all methods share: frozen values, the backbone they are made for, activations by name."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from adapter_store.families import ADDRESS, LINEARS
from adapter_store.names import shown

Shape = tuple[int, ...]

MAX_WIDTH = 1 << 22
MAX_LAYERS = 1024
# What a config may divide by is not smaller: below it sizes and scores overflow.
LEAST_DIVISOR = 0.001
# What a config may multiply by is not larger in size: the largest number that every dtype of a backbone has.
MAX_FACTOR = 65504.0

# Names of the `adapters` library and of transformers' ACT2FN -> the name that Turret computes.
# Names with learned or random parts are left out.
ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_accurate": "gelu_accurate",
    "gelu_fast": "gelu_fast",
    "gelu_10": "gelu_10",
    "quick_gelu": "quick_gelu",
    "laplace": "laplace",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(name: str) -> str:
    """The canonical name of an activation; raises ValueError for one that is unknown (it is never defaulted)."""
    try:
        return ACTIVATIONS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown activation {shown(name, 40)}; known are {', '.join(sorted(ACTIVATIONS))}") from None


# A name that is known, as its canonical one.
Activation = Annotated[str, AfterValidator(activation)]


class Frozen(BaseModel):
    """Base of what is read from a manifest: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Backbone(Frozen):
    """The frozen model that a package was made for.

    `fingerprint` is the sha256 of its config and weights (`server.engine.backbone.fingerprint`); None means "not known",
    in which case type and dimensions alone are compared. Of the `num_layers` the last `decoder_layers` are the decoder's (0 in
    models of one stack). `embedding_size` is given where it differs from `hidden_size`. `linears` holds the dimensions (in, out)
    of the model's linears by canonical name (`adapter_store/families.py`); a package lists those that its methods need.
    """

    model_type: str = Field(min_length=1, max_length=64)
    hidden_size: int = Field(ge=1, le=65536)
    num_layers: int = Field(ge=1, le=MAX_LAYERS)
    decoder_layers: int = Field(default=0, ge=0, le=MAX_LAYERS)
    embedding_size: int | None = Field(default=None, ge=1, le=65536)
    linears: dict[str, tuple[int, int]] = Field(default_factory=dict)
    name: str = Field(default="", max_length=256)
    fingerprint: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")

    @field_validator("linears")
    @classmethod
    def _sound_linears(cls, value: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, dimensions in value.items():
            if name not in LINEARS or not all(1 <= dimension <= MAX_WIDTH for dimension in dimensions):
                raise ValueError(f"{shown(name, 40)} is not a linear with sound dimensions")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Backbone":
        if self.decoder_layers > self.num_layers:
            raise ValueError(f"{self.decoder_layers} of {self.num_layers} layers cannot be the decoder's")
        return self

    @property
    def encoder_layers(self) -> int:
        """Number of layers of the first stack."""
        return self.num_layers - self.decoder_layers

    @property
    def embeddings(self) -> int:
        """The size of an embedding."""
        return self.embedding_size or self.hidden_size

    def linear(self, address: str) -> tuple[int, int]:
        """(in, out) of the linear at an address; raises ValueError where the dimensions are not known or the layer is not there."""
        name = address.rpartition(".")[2]
        if not ADDRESS.fullmatch(address):
            raise ValueError(f"{shown(address, 60)} is no linear")
        if name not in self.linears:
            raise ValueError(f"the backbone's dimensions of '{name}' are not known")
        if address != name and int(address.split(".")[1]) >= self.num_layers:
            raise ValueError(f"'{address}' lies past the last of {self.num_layers} layers")
        return self.linears[name]

    def key_width(self, group: str) -> int:
        """Number of a key's numbers (key heads times their size) in the attentions of a prefix group."""
        name = "cross_k" if group == "cross" else "k"
        if name in self.linears:
            return self.linears[name][1]
        if "qkv" in self.linears:
            return self.linears["qkv"][1] // 3
        raise ValueError(f"the backbone's dimensions of '{name}' are not known")


def check_layers(value: tuple[int, ...]) -> tuple[int, ...]:
    """Layer numbers, sorted, each once; raises ValueError."""
    if len(value) > MAX_LAYERS:
        raise ValueError(f"leave_out holds {len(value)} numbers, at most {MAX_LAYERS} are allowed")
    if any(not 0 <= layer < MAX_LAYERS for layer in value):
        raise ValueError("leave_out must hold layer numbers from 0 on")
    return tuple(sorted(set(value)))


# What an output is multiplied by.
Factor = Annotated[float, Field(ge=-MAX_FACTOR, le=MAX_FACTOR)]

# Layers that a method leaves alone (AdapterDrop, arXiv 2010.11918).
Layers = Annotated[tuple[int, ...], FailFast(), AfterValidator(check_layers)]
