"""The terms of the objective, a row each: from here come the methods and the flags and defaults of the weights."""

from typing import NamedTuple


class Term(NamedTuple):
    """A term is this row, its function in scoft_losses.py, and its line in `objective.py: training_losses`."""

    symbol: str
    weight: float  # of the authors' code; the paper's own are lost
    methods: tuple[str, ...]  # that have it: the paper's ablations, and plain finetune
    needs: str | None = None  # what each row, or some rows, must have: blip_captions, negatives
    on_images: bool = False
    help: str = ""  # what is to be said of its weight's default


TERMS = {
    "ldm": Term("L_LDM", 0.7, ("finetune", "m", "mp", "mpc"), help="; 1 for finetune"),
    "memorization": Term("L_M", 0.3, ("m", "mp", "mpc"), needs="blip_captions"),
    "perceptual": Term("L_P", 0.01, ("mp", "mpc"), on_images=True),
    "contrastive": Term("L_C", 0.05, ("mpc",), needs="negatives", on_images=True),
}
METHODS = {
    method: tuple(name for name, term in TERMS.items() if method in term.methods)
    for method in ("finetune", "m", "mp", "mpc")
}
DEFAULT_WEIGHTS = {name: term.weight for name, term in TERMS.items()}
IMAGE_TERMS = {name for name, term in TERMS.items() if term.on_images}
ACTIVE = "active_negatives"  # among the values of an update, beside L_C: the share of negatives that it sees
