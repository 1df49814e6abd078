"""The keys of evaluation; apart from what reads them, so that they need no torch."""

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """`every` so many steps (0: only at the end), on `batches` batches (0: the whole split).

    `stop_at_accuracy` (%) ends the training at the first validation that reaches it; 0 trains to the last step.
    """

    every: int = 500
    batches: int = 8
    stop_at_accuracy: float = 0.0
