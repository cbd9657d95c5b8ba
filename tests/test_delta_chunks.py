"""Chunks of words through the three codecs: every density, gap and width, cut short and damaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delta_models import stepped, wild
from offaxis.delta import coding, fast, planes, small
from offaxis.delta.compress import squeeze, unsqueeze
from offaxis.delta.words import words_of

Array = np.ndarray
BITS = (8, 16, 32, 64)
SIZE = 9000
DTYPES = {8: "F8_E5M2", 16: "BF16", 32: "F32", 64: "F64"}


def coder_of(codec: str, base: Array, tuned: Array) -> tuple[bytes, Callable[[bytes], Array]]:
    """The chunk that a codec makes of a pair, and what decodes one like it."""
    words = words_of(DTYPES[8 * base.itemsize])
    out = np.empty_like(base)
    if codec == "fast":
        return fast.encode(base, tuned)[0], lambda chunk: (fast.decode(chunk, base, out), out)[1]
    if codec == "planes":
        return planes.encode(tuned), lambda chunk: (planes.decode(chunk, out), out)[1]
    model, _ = small.analyse(base, tuned, words, base.shape)
    coder = small.Coder(model, words)
    return coder.encode(base, tuned, 0), lambda chunk: (coder.decode(chunk, base, 0, out), out)[1]


def with_changes(bits: int, where: Array, *, seed: int = 0) -> tuple[Array, Array]:
    """Random base words, and the same with a step of one or two ULPs at the entries `where`."""
    rng = np.random.default_rng(seed)
    base = np.frombuffer(rng.bytes(SIZE * bits // 8), words_of(DTYPES[bits]).dtype)
    tuned = base.copy()
    tuned[where] += rng.choice(np.array([1, 2, -1], dtype=np.int64), len(where)).astype(
        words_of(DTYPES[bits]).dtype
    )
    return base, tuned


def gaps_of(*gaps: int) -> Array:
    return np.cumsum(np.array(gaps) + 1) - 1


PATTERNS = {
    "none": np.array([], dtype=int),
    "first": np.array([0]),
    "last": np.array([SIZE - 1]),
    "first and last": np.array([0, SIZE - 1]),
    "around 4096": np.array([4094, 4095, 4096, 8191, 8192]),
    "gaps of a byte": gaps_of(254, 255, 256, 0, 0),
    "gaps of two bytes": gaps_of(509, 510, 511, 1),
    "half": np.arange(0, SIZE, 2),
    "under half": np.arange(0, SIZE - 2, 2),
    "all": np.arange(SIZE),
}
CODECS = ("small", "fast", "planes")


@st.composite
def word_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Base and tuned words of one width: anything at all, or a step of a few ULPs away."""
    dtype = words_of(DTYPES[draw(st.sampled_from(BITS))]).dtype
    size = draw(st.integers(1, 60))
    base, other = (draw(arrays(dtype, size)) for _ in "ab")
    steps = draw(arrays(np.int64, size, elements=st.integers(-9, 9)))
    return base, np.where(draw(arrays(np.bool_, size)), base + steps.astype(dtype), other)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("codec", CODECS)
def test_chunks_of_every_density_and_gap_come_back(codec: str, bits: int, pattern: str) -> None:
    base, tuned = with_changes(bits, PATTERNS[pattern])
    chunk, decode = coder_of(codec, base, tuned)
    assert np.array_equal(decode(chunk), tuned)
    assert np.array_equal(decode(memoryview(chunk)), tuned), "a reader maps its file"


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None)
@given(pair=word_pairs())
def test_chunks_of_any_words_come_back(codec: str, pair: tuple[Array, Array]) -> None:
    base, tuned = pair
    chunk, decode = coder_of(codec, base, tuned)
    assert np.array_equal(decode(chunk), tuned)
    if codec == "fast":
        assert fast.encode(base, tuned)[1] == (base != tuned).sum()


DAMAGED = ["none", "gaps of two bytes", "half", "all"]


@pytest.mark.parametrize("pattern", DAMAGED)
@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_that_ends_early_or_late_is_refused(codec: str, pattern: str) -> None:
    chunk, decode = coder_of(codec, *with_changes(16, PATTERNS[pattern]))
    for length in {*range(min(24, len(chunk))), *range(0, len(chunk), 97), len(chunk) - 1}:
        with pytest.raises(ValueError, match=r"chunk|stream"):
            decode(chunk[:length])
    with pytest.raises(ValueError, match=r"chunk|stream"):
        decode(chunk + bytes(4))


@pytest.mark.parametrize("pattern", DAMAGED)
@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 1 << 20), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_decodes_to_something(
    codec: str, pattern: str, at: int, flip: int
) -> None:
    """Damage that a chunk cannot see is for the tensor's checksum; none may crash or hang."""
    base, tuned = with_changes(16, PATTERNS[pattern])
    chunk, decode = coder_of(codec, base, tuned)
    damaged = bytearray(chunk)
    damaged[at % len(chunk)] ^= flip
    try:
        found = decode(bytes(damaged))
    except ValueError:
        return
    assert found.shape == tuned.shape


def announcing(size: int) -> bytes:
    """A zstd frame whose header promises `size` bytes."""
    frame = squeeze(b"abc" * 100, level=1)
    return frame[:4] + b"\xe0" + size.to_bytes(8, "little") + frame[6:]


FRAMES = {
    "nothing": b"",
    "no frame": b"no frame",
    "more behind": squeeze(b"abc", level=1) + b"more",
    "too long": squeeze(b"abcd", level=1),
    "too short": squeeze(b"ab", level=1),
    "a pebibyte": announcing(1 << 50),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_is_not_what_was_expected_is_refused(name: str) -> None:
    """Even one that announces a pebibyte: a hostile file may not choose what is allocated."""
    with pytest.raises(ValueError, match="compressed stream"):
        unsqueeze(FRAMES[name], 3)


CHUNKS = {"small": small.CHUNK, "fast": fast.CHUNK, "planes": planes.CHUNK, "raw": planes.CHUNK}


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("codec", CHUNKS)
def test_chunks_join_without_a_seam(codec: str, extra: int) -> None:
    base = wild("F16", (CHUNKS[codec] + extra,))
    share, reach = (1.0, 1 << 15) if codec in {"planes", "raw"} else (0.02, 1)
    tuned = stepped(base, share=share, reach=reach)
    if codec == "planes":
        tuned = tuned.with_words(tuned.words & np.uint16(0xFF0F))
    words = words_of("F16")
    found = coding.encode("small" if codec == "small" else "fast", base.words, tuned.words, words,
                          base.shape)  # fmt: skip
    assert found.codec == codec
    assert found.changed == (base.words != tuned.words).sum()
    stream = memoryview(b"".join(found.parts))
    decoder = coding.Decoder(codec, stream, size=tuned.words.size, words=words, shape=base.shape,
                             model=found.model)  # fmt: skip
    assert len(decoder.spans) == (2 if extra > 0 else 1)
    assert decoder.spans[-1][1] == tuned.words.size
    out = np.zeros_like(tuned.words)
    for index in reversed(range(len(decoder.spans))):
        decoder.decode(index, base.words, out[slice(*decoder.spans[index])])
    assert np.array_equal(out, tuned.words)
