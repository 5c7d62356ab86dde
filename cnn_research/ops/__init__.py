"""Pure functions on arrays, in the formulation that is fastest on the current platform."""

from cnn_research.ops.convolution import conv_general_dilated
from cnn_research.ops.filters import filter_image, filter_signal
from cnn_research.ops.normalisation import local_response_norm
from cnn_research.ops.platform import (
    PLAIN,
    Formulation,
    current_formulation,
    default_formulation,
    use_formulation,
)
from cnn_research.ops.pooling import adaptive_avg_pool, avg_pool, max_pool, min_pool
