"""Checks annotations while the tests run: jaxtyping's import hook calls `check` on every function of beni."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
