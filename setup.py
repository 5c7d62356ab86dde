"""The packages of the project; all else about it is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cnn_research*"]), "cnn_research.experiments"],
    # A folder of the repository, and not a package of this name beside everybody else's.
    package_dir={"cnn_research.experiments": "experiments"},
)
