"""Small tokenizers with pieces of words, of the two kinds whose offsets differ: WordPiece (BERT) and byte-level BPE (RoBERTa)."""

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

WORDS = ["Anna", "Berlin", "unaffable", "York", "Berlinable", "anna", "U.S.", ",", "(Anna)", "  York"]
PIECES = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "Anna", "Berlin", "York", "un", "##aff", "##able", "anna"]
PIECES += ["U", "S", ".", ",", "(", ")"]


def word_pieces() -> Tokenizer:
    """[CLS] a [SEP] b [SEP], the second text of type 1, and a [MASK]."""
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    return tokenizer


def byte_pieces() -> Tokenizer:
    """<s> a </s></s> b </s> over the letters of WORDS and a few merges; a space is part of the word behind it."""
    letters = sorted({letter for word in WORDS for letter in word.replace(" ", "Ġ")} | {"Ġ"})
    merges = [("A", "n"), ("n", "a"), ("An", "na"), ("Ġ", "An"), ("u", "n"), ("l", "e"), ("B", "e"), ("Ġ", "Be"), ("Ġ", "Y")]
    joined = [a + b for a, b in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *letters, *joined, "<mask>"]))}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def tokenizers() -> dict[str, Tokenizer]:
    return {"wordpiece": word_pieces(), "bytes": byte_pieces()}
