"""How questions are put: two or three paraphrases each, short words, one place for all of them."""

import zlib

TEMPLATES: dict[str, tuple[str, ...]] = {
    "size/wide": ("How wide is the {noun}?", "What is the width of the {noun}?"),
    "size/long": ("How long is the {noun}?", "What is the length of the {noun}?"),
    "size/fields": ("How wide is a field?", "What is the width of a field?"),
    "area": ("How large is the {noun}?", "What is the area of the {noun}?"),
    "fit/wide": ("How many cars fit across the {noun}?", "How many 4.5 m cars are as long as the {noun} is wide?"),
    "fit/long": ("How many cars fit along the {noun}?", "How many 4.5 m cars are as long as the {noun}?"),
    "larger/wide": ("Is the {noun} wider than {size}?", "Is the width of the {noun} over {size}?"),
    "larger/long": ("Is the {noun} longer than {size}?", "Is the length of the {noun} over {size}?"),
    "which_size": (
        "Which is right? (A) {noun} {a} {measure} (B) {noun} {b} {measure}",
        "What fits this image? (A) {noun} {a} {measure} (B) {noun} {b} {measure}",
    ),
    "which_thing": ("Which is right? (A) {a} (B) {b}", "What fits this image? (A) {a} (B) {b}"),
    "land_cover": ("What covers most of the image?", "What is the main land cover?"),
    "presence": ("Is there {thing}?", "Does the image show {thing}?"),
    "setting": ("Is this urban or rural?", "Is the area urban or rural?"),
    "side": ("On which side is the {thing}?", "Where is the {thing}?"),
    "orientation": ("Does the {noun} run {way}?", "Is the {noun} oriented {way}?"),
    "count": ("How many {things} are there?", "What is the number of {things}?"),
}


def say(template: str, key: str, **words: str) -> str:
    """One paraphrase, chosen by a checksum of `key`: the same in every run and process."""
    forms = TEMPLATES[template]
    return forms[zlib.crc32(f"{template}|{key}".encode()) % len(forms)].format(**words)
