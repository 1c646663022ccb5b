"""The requests, by area."""

from table import chat, completions, errors, models, streaming

SCENARIOS = [*chat.ROWS, *streaming.ROWS, *completions.ROWS, *models.ROWS, *errors.ROWS]
