"""How questions are put: two or three paraphrases each, short words, one place for all of them."""

import hashlib

TEMPLATES: dict[str, tuple[str, ...]] = {
    "size/wide": ("How wide is the {noun}?", "What is the width of the {noun}?"),
    "size/long": ("How long is the {noun}?", "What is the length of the {noun}?"),
    "size/fields": ("How wide is a field?", "What is the width of a field?"),
    "area": ("What area does the {noun} cover?", "What is the area of the {noun}?"),
    "fit/wide": ("How many cars fit across the {noun}?", "How many 4.5 m cars in a row span the {noun}?"),
    "fit/long": ("How many cars fit along the {noun}?", "How many 4.5 m cars in a row are as long as the {noun}?"),
    "larger/wide": ("Is the {noun} wider than {size}?", "Is the width of the {noun} over {size}?"),
    "larger/long": ("Is the {noun} longer than {size}?", "Is the length of the {noun} over {size}?"),
    "which_size": ("How {measure} is {noun}: {a} or {b}?", "Is {noun} {a} or {b} {measure}?"),
    "which_thing": ("Is this {a} or {b}?", "Does the image show {a} or {b}?"),
    "which_thing/fields": ("Are these {a} or {b}?", "Does the image show {a} or {b}?"),
    "land_cover": ("What covers most of the image?", "What is the main land cover?"),
    "presence": ("Is there {thing}?", "Does the image show {thing}?"),
    "setting": ("Is this urban or rural?", "Is the area urban or rural?"),
    "side": ("On which side is the {thing}?", "Where in the image is the {thing}?"),
    "orientation": ("Does the {noun} run {way}?", "Is the {noun} oriented {way}?"),
}


def draw(key: str) -> int:
    """A number of 32 bits from a text: the same in every run and process, independent between texts."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


def coin(key: str) -> int:
    """0 or 1, from a text."""
    return draw(key) & 1


def say(template: str, key: str, **words: str) -> str:
    """One paraphrase, drawn from `key`."""
    forms = TEMPLATES[template]
    return forms[draw(f"{template}|{key}") % len(forms)].format(**words)
