"""What a parameter does in a model. Everything that scales with width depends on it, and on nothing else."""

from enum import Enum


class Role(Enum):
    """What a parameter does, which decides how it scales with width."""

    EMBEDDING = "embedding"  # (vocab, width): only the output side grows
    HIDDEN = "hidden"  # both sides grow with width
    READOUT = "readout"  # (vocab, width): only the input side grows
    VECTOR = "vector"  # gains and biases
