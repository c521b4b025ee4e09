"""A reward that a random model's completions do not all have, so that training moves its weights."""


def parity(prompts: list[str], completions: list[str], **_columns: object) -> list[float]:
    """Whether the characters' codes add up to an odd number."""
    return [float(sum(map(ord, completion)) % 2) for completion in completions]
