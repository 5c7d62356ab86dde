"""The registered experiments, one module per subject: those of the folder `experiments/`.

That folder lies beside this package in a checkout. Where the package is installed, it has this
module's name and place, and is imported instead of it.
"""

from cnn_research.core.files import EXPERIMENTS

__path__ = [str(EXPERIMENTS)]
