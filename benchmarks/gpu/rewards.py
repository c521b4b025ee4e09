"""A reward that a random model's completions do not all have, so that training moves its weights."""


def parity(prompts: list[str], completions: list[str], **_columns: object) -> list[float]:
    """Pay 1 where the characters' codes add up to an odd number, else 0."""
    return [float(sum(map(ord, completion)) % 2) for completion in completions]
