.PHONY: env train test slow newest lint tables docs

env: .venv/bin/python
.venv/bin/python: setup.cfg constraints.txt
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"

train: env
	.venv/bin/python launch.py --experiment=digits_cnn

test: env
	.venv/bin/python -m pytest

slow: env
	.venv/bin/python -m pytest -m slow

newest:
	python3.13 -m venv .venv-newest
	.venv-newest/bin/pip install -q -c constraints-newest.txt -e ".[dev]"
	.venv-newest/bin/python -m pytest

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

tables: env
	.venv/bin/python -m benchmarks.readme_tables

docs: env
	.venv/bin/pip install -q -c constraints.txt -e ".[docs]"
	.venv/bin/python -m sphinx -W -b html docs docs/_build/html
