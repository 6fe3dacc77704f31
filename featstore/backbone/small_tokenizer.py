"""A real CLIP tokenizer with a vocabulary of a few hundred tokens, for the small model: every byte can be written, and
the words of the demo's captions are single tokens, as they are in CLIP's own vocabulary."""

import json
from pathlib import Path

WORDS = ("a", "photo", "of", "bird", "car", "person", "fish")
"""Words that are one token each."""

POSITIONS = 77
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"
END_OF_WORD = "</w>"


def write_tokenizer(folder: Path) -> int:
    """Writes vocab.json, merges.txt and the two json files that `CLIPTokenizer.from_pretrained` reads into `folder`.

    Returns the size of the vocabulary; as in CLIP, its last two ids are the start and the end token, and the padding
    token "!" is id 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges(WORDS)
    letters = _byte_letters()
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": PAD}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": POSITIONS,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    merge_lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(merge_lines) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    return len(vocabulary)


def _byte_letters() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order of CLIP's vocabulary ("!" first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """The merges that build each word from its left end; merges that words have in common are listed once."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*list(word[:-1]), word[-1] + END_OF_WORD]
        built = parts[0]
        for part in parts[1:]:
            merges[(built, part)] = None
            built += part
    return list(merges)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
