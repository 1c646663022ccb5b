"""The requests, by area."""

from table import chat, completions, embeddings, errors, messages, models, responses, streaming, structured, tools

AREAS = (chat, streaming, structured, tools, completions, embeddings, responses, messages, models, errors)
SCENARIOS = [row for area in AREAS for row in area.ROWS]
