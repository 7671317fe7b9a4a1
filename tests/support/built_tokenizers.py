"""Real tokenizers, made here: each family's way to spell a token, some with holes in their ids."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = (" wait", "wait", "Wait", " Wait", " but", "but", ".\n\n", "\n\n", " butter", "company")


def _merged(vocab, merges, words):
    """Adds each word to a byte-pair vocabulary, with the merges that lead to it."""
    for word in words:
        left = word[0]
        for letter in word[1:]:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            vocab.setdefault(left, len(vocab))


def byte_level(words=WORDS, *, holes=(), added=("<think>", "</think>", "<a b>", "é"), gap=0):
    """A byte-level BPE tokenizer, as GPT-2, Qwen and Llama 3 have it.

    ``holes`` are ids that no token gets; ``gap`` more stand below the last eight merged pieces.
    """
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {letter: i for i, letter in enumerate(sorted(spell.alphabet()))}
    merges = []
    _merged(vocab, merges, [spell.pre_tokenize_str(word)[0][0] for word in words])
    moved, at = {}, 0
    for piece in vocab:
        while at in holes:
            at += 1
        moved[piece], at = at, at + 1
    for piece in list(moved)[-8:]:
        moved[piece] += gap
    tokenizer = Tokenizer(models.BPE(vocab=moved, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = spell, decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentence_piece(words=WORDS, *, strip=True):
    """A BPE tokenizer with ``▁`` for blanks and bytes to fall back to, as Llama 2 and Gemma."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!<>/\n"
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    for letter in letters:
        vocab[letter] = len(vocab)
    merges = []
    _merged(vocab, merges, [word.replace(" ", "▁") for word in words])
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *steps] if strip else steps
    )
    tail = [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_piece():
    """A WordPiece tokenizer, as BERT: the blank belongs to no token."""
    pieces = ["[UNK]", "a", "wait", "##ing", "##s", "but", ".", "!"]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def size_of(tokenizer):
    """Ids up to the largest, holes among them."""
    return 1 + max(tokenizer.get_vocab().values())
