"""The registered experiments in the folder `experiments/`, one module per subject.

In a checkout, the folder is next to this package. In an installed package, it replaces this module.
"""

from cnn_research.core.files import EXPERIMENTS

__path__ = [str(EXPERIMENTS)]
