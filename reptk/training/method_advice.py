"""Advice on warnings about a run whose keys in the recipe depend on the method."""

from reptk.evaluate.diagnostics import LOSS_TEMPERATURE, PROTOTYPES_ADVICE, temperature_advice
from reptk.training.parts import Parts, Settings


def temperature_key(settings: Settings) -> str:
    """Return the recipe's key of the temperature that the method returns: its loss's, or its own if it takes no loss."""
    if settings.takes_loss:
        return LOSS_TEMPERATURE
    return "method.temperature"


def prototypes_advice(parts: Parts) -> str:
    """Return what to change where the assignments to prototypes collapse."""
    if parts.method.prototypes_advice:
        return f"{PROTOTYPES_ADVICE}; {parts.method.prototypes_advice}"
    return PROTOTYPES_ADVICE


def method_advice(parts: Parts) -> dict[str, str]:
    """Return the advice by kind of warning."""
    return {"prototypes": prototypes_advice(parts), "temperature": temperature_advice(temperature_key(parts.settings))}
