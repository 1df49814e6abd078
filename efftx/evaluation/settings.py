"""The keys of evaluation; apart from what reads them, so that they need no torch."""

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """`every` so many steps (0: only at the end), on `batches` batches (0: the whole split).

    `stop_at_accuracy` (%) ends the training at the first validation that reaches it; 0 trains to the last step.
    `min_context`: on the test split of a text every token that is scored has so many before it at least: rows slide by
    what they have more, over the same stretch of text as without (0: rows stand side by side, and a row's first token
    has none).
    """

    every: int = 500
    batches: int = 8
    stop_at_accuracy: float = 0.0
    min_context: int = 0
