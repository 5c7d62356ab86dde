"""The registered experiments of the folder `experiments/`, one module per subject.

In a checkout that folder is beside this package. In an installed package it has this module's name
and place, and is imported instead.
"""

from cnn_research.core.files import EXPERIMENTS

__path__ = [str(EXPERIMENTS)]
