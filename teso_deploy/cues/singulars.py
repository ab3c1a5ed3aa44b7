"""The singular of an English noun, by rules and lists of exceptions."""

from __future__ import annotations

#: Irregular endings, matched at the end of a word so that "policemen" and "bookshelves" are found too.
_ENDS = {
    "men": "man", "people": "person", "children": "child", "shoes": "shoe",
    "wolves": "wolf", "calves": "calf", "halves": "half", "shelves": "shelf", "leaves": "leaf", "thieves": "thief",
    "loaves": "loaf", "hooves": "hoof", "scarves": "scarf", "knives": "knife", "wives": "wife",
}  # fmt: skip
#: Whole words.
_WHOLE = {
    "geese": "goose", "mice": "mouse", "lice": "louse", "teeth": "tooth", "feet": "foot", "oxen": "ox",
    "cacti": "cactus", "fungi": "fungus", "hippopotami": "hippopotamus", "octopi": "octopus", "celli": "cello",
    "elves": "elf", "lives": "life", "dwarves": "dwarf", "quizzes": "quiz", "axes": "axe", "pickaxes": "pickaxe",
    "gases": "gas", "lenses": "lens", "canvases": "canvas", "atlases": "atlas", "irises": "iris",
    "rhinoceroses": "rhinoceros", "emus": "emu", "gnus": "gnu", "menus": "menu", "gurus": "guru",
    "erhus": "erhu", "caribous": "caribou", "broccolis": "broccoli", "timpanis": "timpani",
    "taxis": "taxi", "skis": "ski", "bikinis": "bikini", "safaris": "safari", "kiwis": "kiwi",
    "fuses": "fuse", "causes": "cause", "pauses": "pause", "muses": "muse",
    "caches": "cache", "avalanches": "avalanche", "quiches": "quiche", "mustaches": "mustache",
    "moustaches": "moustache", "toes": "toe", "hoes": "hoe", "foes": "foe", "does": "doe", "oboes": "oboe",
    "canoes": "canoe", "ties": "tie", "neckties": "necktie", "pies": "pie", "cookies": "cookie", "movies": "movie",
    "zombies": "zombie", "selfies": "selfie", "hoodies": "hoodie", "brownies": "brownie", "collies": "collie",
    "budgies": "budgie", "magpies": "magpie", "walkie-talkies": "walkie-talkie", "smoothies": "smoothie",
}  # fmt: skip
#: Words that are their own singular, or that have none.
_KEPT = {
    "gas", "lens", "canvas", "atlas", "christmas", "pancreas", "alias", "bias", "chaos", "cosmos", "rhinoceros",
    "series", "species", "news", "mathematics", "physics", "athletics", "gymnastics", "aerobics", "scissors",
    "trousers", "pants", "jeans", "tights", "leggings", "pajamas", "pyjamas", "clothes", "sunglasses", "eyeglasses",
    "binoculars", "pliers", "tweezers", "tongs", "specimen", "omen", "stamen", "abdomen", "ramen", "regimen",
}  # fmt: skip
#: Endings that lose "es": after a hiss, and after "o".
_LOSE_ES = ("sses", "shes", "ches", "xes", "zzes", "tzes", "oes")


def make_singular(name: str) -> str:
    """Return the singular of a noun or noun phrase in lower case; unchanged if it is one already, or has none.

    In a phrase, the last word becomes singular, and so does the word before each "of".

    >>> [make_singular(name) for name in ("church bells", "glass", "flocks of geese")]
    ['church bell', 'glass', 'flock of goose']
    """
    head, of, rest = name.partition(" of ")
    before, blank, last = head.rpartition(" ")
    return f"{before}{blank}{_make_word_singular(last)}{of}{make_singular(rest) if of else ''}"


def _make_word_singular(word: str) -> str:
    if word in _KEPT:
        return word
    if word in _WHOLE:
        return _WHOLE[word]
    for plural, one in _ENDS.items():
        if word.endswith(plural):
            return word[: -len(plural)] + one
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is", "'s")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    # "walruses" has a singular in "us", but "houses" and "blouses" have one in "e".
    if word.endswith(_LOSE_ES) or (word.endswith("uses") and not word.endswith("ouses")):
        return word[:-2]
    return word[:-1]
