"""Rules by which byte-level tokenizers of GGUF files split a text, by `tokenizer.ggml.pre`.

Each name stands for the regular expressions of a model's tokenizer.json. The names, and which of
them share a splitting, are those of llama.cpp (src/llama-vocab.cpp); the expressions are those of
the models' own tokenizers, in the syntax of Oniguruma, which `tokenizers` uses.
"""

from dataclasses import dataclass

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _match_cased_words(suffix: str = "", upper: str = _UPPER, lower: str = _LOWER) -> str:
    """Words with at most one change from upper to lower case, as in GPT-4o's tokenizer."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"


_CASED_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_match_cased_words()}|\p{{N}}|{_CASED_REST}"
_GPT4O = rf"{_match_cased_words(f'{_CONTRACTION}?')}|\p{{N}}{{1,3}}|{_CASED_REST}"
_IDEOGRAPHS = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_CJK = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3 = (
    rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_AFMOE_DIGITS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_EAST_ASIAN = (
    r"["
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}"
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}"
    r"\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}"
    r"]+"
)
_NOT_HAN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_NOT_HAN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"\p{{Han}}+|{_match_cased_words(f'{_CONTRACTION}?', _NOT_HAN_UPPER, _NOT_HAN_LOWER)}"
    rf"|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
)
_JAIS2_RUNS = "".join(rf"\s{{{1 << power}}}(?!\S)|" for power in range(9, 1, -1))
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"
_DEEPSEEK_LLM_LETTERS = (
    r"A-Za-z\x{00B5}\x{00C0}-\x{00D6}\x{00D8}-\x{00F6}\x{00F8}-\x{01BA}\x{01BC}-\x{01BF}"
    r"\x{01C4}-\x{0293}\x{0295}-\x{02AF}\x{0370}-\x{0373}\x{0376}\x{0377}\x{037B}-\x{037D}"
    r"\x{037F}\x{0386}\x{0388}-\x{038A}\x{038C}\x{038E}-\x{03A1}\x{03A3}-\x{03F5}"
    r"\x{03F7}-\x{0481}\x{048A}-\x{052F}\x{0531}-\x{0556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}"
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}"
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}"
    r"\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}"
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}"
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}"
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}"
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}"
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a text is cut into pieces, before the bytes of each piece are merged to tokens.

    Attributes:
        patterns: regular expressions in turn: what one leaves whole, the next one cuts.
        ignores_merges: a piece that is a token stays one, whatever the merges say.
        adds_start: a text begins with the start token, where the file does not say otherwise.
        is_raw: tokens are texts with \u2581 for a space, as SentencePiece writes them; those of the
            others are written in the 256 letters that stand for bytes.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_start: bool = False
    is_raw: bool = False


_GPT2_SPLITTING = Splitting((_GPT2,))
_DIGITS_GPT2 = Splitting((r"\p{N}", _GPT2))
_LLAMA3_SPLITTING = Splitting((_LLAMA3,), ignores_merges=True, adds_start=True)
_QWEN2_SPLITTING = Splitting((_QWEN2,))
_DEEPSEEK3_SPLITTING = Splitting((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_GPT4O_SPLITTING = Splitting((_GPT4O,))
_BAILING = Splitting(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        rf"|{_PUNCTUATION}|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_COHERE = Splitting((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))

SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de",
            "a.x-4.0", "mellum", "modern-bert", "mpt", "olmo", "jais", "trillion",
            "granite-docling", "exaone4",
        ),
        _GPT2_SPLITTING,
    ),
    **dict.fromkeys(
        (
            "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
            "mellum2",
        ),
        _DIGITS_GPT2,
    ),
    **dict.fromkeys(
        (
            "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
            "lfm2", "jina-v5-nano",
        ),
        _LLAMA3_SPLITTING,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Splitting((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), Splitting((_LLAMA3,), ignores_merges=True)),
    **dict.fromkeys(
        (
            "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open",
            "megrez", "grok-2",
        ),
        _QWEN2_SPLITTING,
    ),
    "qwen35": Splitting((_QWEN35,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3_SPLITTING),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O_SPLITTING
    ),
    "tekken": Splitting((_TEKKEN,), ignores_merges=True, adds_start=True),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _COHERE),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), Splitting((_BLOOM,))),
    "viking": Splitting((_BLOOM, r"\p{N}")),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-llm": Splitting(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LLM_LETTERS}]+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            _IDEOGRAPHS,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Splitting(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}")
    ),
    "afmoe": Splitting((_AFMOE_DIGITS, _EAST_ASIAN, _DEEPSEEK3)),
    "gemma4": Splitting((r"\n+",), adds_start=True, is_raw=True),
    "sarvam-moe": Splitting((r"\n+",), is_raw=True),
    "youtu": Splitting(
        (
            r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
            r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}"
            r"\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
            rf"|[\x{{3105}}-\x{{312F}}]+|{_CJK}",
            rf"{_match_cased_words(f'{_CONTRACTION}?')}|\p{{N}}|{_CASED_REST}",
        ),
        ignores_merges=True,
    ),
    "jais-2": Splitting(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}"
            rf"|\s*[\r\n]+|{_JAIS2_RUNS}\s{{1,2}}(?!\S)|\s",
        )
    ),
    "kimi-k2": Splitting((_KIMI,)),
    "seed-coder": Splitting(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        )
    ),
    "ufakzeka": Splitting(
        (rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}|{_SPACES}",)
    ),
    "laguna": Splitting((r"[^\n]+|[\n]+", _QWEN2)),
    "exaone-moe": Splitting(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": Splitting(
        (
            r"\p{N}{1,3}",
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_PUNCTUATION}|{_SPACES}",
        ),
        ignores_merges=True,
    ),
    "superbpe": Splitting((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "chameleon": Splitting(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        adds_start=True,
    ),
}  # fmt: skip
