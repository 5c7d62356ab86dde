"""Pure functions on arrays, in the formulation that is fastest on the platform at hand."""

from cnn_research.ops.convolution import conv_general_dilated
from cnn_research.ops.platform import (
    PLAIN,
    Formulation,
    current_formulation,
    default_formulation,
    keep_freed_memory,
    use_formulation,
)
from cnn_research.ops.pooling import avg_pool, max_pool, min_pool

__all__ = [
    "PLAIN",
    "Formulation",
    "avg_pool",
    "conv_general_dilated",
    "current_formulation",
    "default_formulation",
    "keep_freed_memory",
    "max_pool",
    "min_pool",
    "use_formulation",
]
