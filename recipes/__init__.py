"""The shipped recipes: one TOML file per run. `python -m reptk.recipe --list` shows them."""
