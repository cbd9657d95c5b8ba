"""Vectors of 16 entries of which a mask takes some: what numba cannot say, said to LLVM.

For other kernels: these compile into their callers. Each is right on every processor and fast where
`LANES` is true.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["LANES", "ROW", "WORD", "fma", "prefetch", "put_row", "set_bits", "step_word"]

LANES = all(get_host_cpu_features().get(name) for name in ("avx512f", "avx512bw", "avx512vl"))
"""Whether the processor compresses and expands vectors by a mask."""

ROW = 8
WORD = 16

_I32 = ir.IntType(32)
_SINGLES = ir.VectorType(ir.FloatType(), WORD)
_WORDS = ir.VectorType(_I32, WORD)
_FLAGS = ir.VectorType(ir.IntType(1), WORD)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [one.type for one in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    none = ir.VectorType(value.type, lanes)(ir.Undefined)
    first = builder.insert_element(none, value, _I32(0))
    return builder.shuffle_vector(first, none, ir.VectorType(_I32, lanes)([0] * lanes))


def _vector(builder: Any, pointer: Any, lanes: int) -> Any:
    """A pointer to an entry as one to a vector."""
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, lanes).as_pointer())


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, b, c), make


@intrinsic
def set_bits(typing: Any, word: Any) -> Any:
    """How many bits of an unsigned integer are set."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(word), make


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Ask for the line of array[at] into the second-level cache; it may lie beyond the end."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, _I32(0), _I32(2), _I32(1))
        return context.get_dummy_value()

    return types.void(array, types.intp), make


@intrinsic
def put_row(typing: Any, table: Any, at: Any, base: Any, out: Any, to: Any) -> Any:
    """out[to : to + 8] = table[at : at + 8] + base, of uint16: one load, addition and store."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, at, base, out, to = arguments
        source = builder.gep(make_array(signature.args[0])(context, builder, table).data, [at])
        target = builder.gep(make_array(signature.args[3])(context, builder, out).data, [to])
        row = builder.load(_vector(builder, source, ROW), align=2)
        moved = builder.add(row, _spread(builder, base, ROW))
        builder.store(moved, _vector(builder, target, ROW), align=2)
        return context.get_dummy_value()

    return types.void(table, types.intp, types.uint16, out, types.intp), make


def _widened(builder: Any, codes: Any) -> Any:
    """bfloat16 codes as float32."""
    shifted = builder.shl(builder.zext(codes, _WORDS), _WORDS([16] * WORD))
    return builder.bitcast(shifted, _SINGLES)


def _rounded(builder: Any, values: Any) -> Any:
    """float32 as bfloat16 codes, to nearest even; a NaN stays a NaN."""

    def all_of(number: int) -> Any:
        return _WORDS([number] * WORD)

    bits = builder.bitcast(values, _WORDS)
    high = builder.lshr(bits, all_of(16))
    half = builder.add(all_of(0x7FFF), builder.and_(high, all_of(1)))
    nearest = builder.lshr(builder.add(bits, half), all_of(16))
    odd = builder.fcmp_unordered("uno", values, values)
    chosen = builder.select(odd, builder.or_(high, all_of(0x40)), nearest)
    return builder.trunc(chosen, ir.VectorType(ir.IntType(16), WORD))


class _Word:
    """The 16 entries of which `word` takes some, while their step is being written."""

    def __init__(self, builder: Any, word: Any) -> None:
        self.builder = builder
        self.flags = builder.bitcast(word, _FLAGS)

    def expand(self, pointer: Any, idle: Any) -> Any:
        """The next entries at `pointer`, one to each lane that is taken; `idle` in the others.

        idle is a value just computed, not zero: clearing the lanes makes the processor wait for
        what last was in the register.
        """
        return _call(
            self.builder, "llvm.masked.expandload.v16f32", _SINGLES, pointer, self.flags, idle
        )

    def compress(self, values: Any, pointer: Any) -> None:
        """The lanes that are taken, side by side to `pointer`; 16 entries are written."""
        packed = _call(self.builder, "llvm.experimental.vector.compress.v16f32", _SINGLES, values,
                       self.flags, _SINGLES(ir.Undefined))  # fmt: skip
        self.builder.store(packed, _vector(self.builder, pointer, WORD), align=4)

    def store(self, values: Any, pointer: Any) -> None:
        """The lanes that are taken to their own places at `pointer`; no other is written."""
        target = _vector(self.builder, pointer, WORD)
        kind = "f32" if values.type == _SINGLES else "i16"
        _call(self.builder, f"llvm.masked.store.v16{kind}.p0", ir.VoidType(), values, target,
              _I32(2), self.flags)  # fmt: skip


@intrinsic
def step_word(typing: Any, p: Any, g: Any, at: Any, word: Any, old: Any, new: Any, k: Any,
              constants: Any) -> Any:  # fmt: skip
    """AdamW's step of those of p[at : at + 16] whose bit of `word` is set.

    old: arrays (m, v, masters, rates, roots) of which entries from k on are theirs; new: arrays
    (m, v, masters) into which theirs are written at k, and up to 16 in all. constants: as in
    `adam_rule`, a tuple. p, g: float32, or uint16 bfloat16 codes, whose values are the masters.
    """

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, half = signature.args, signature.args[0].dtype == types.uint16

        def place(kind: Any, array: Any, index: Any) -> Any:
            return builder.gep(make_array(kind)(context, builder, array).data, [index])

        p, g = (place(kinds[i], arguments[i], arguments[2]) for i in range(2))
        m, v, masters, rates, roots = (
            place(kind, builder.extract_value(arguments[4], i), arguments[6])
            for i, kind in enumerate(kinds[4])
        )
        to_m, to_v, to_masters = (
            place(kind, builder.extract_value(arguments[5], i), arguments[6])
            for i, kind in enumerate(kinds[5])
        )
        lanes = _Word(builder, arguments[3])
        gradient = builder.load(_vector(builder, g, WORD), align=2)
        gradient = _widened(builder, gradient) if half else gradient
        value = (
            lanes.expand(masters, gradient)
            if half
            else builder.load(_vector(builder, p, WORD), align=4)
        )
        scalars = [builder.extract_value(arguments[7], i) for i in range(6)]
        state = (lanes.expand(m, gradient), lanes.expand(v, gradient))
        pace = (lanes.expand(rates, gradient), lanes.expand(roots, gradient))
        first, second, after = _stepped(builder, value, gradient, state, pace, scalars)
        lanes.compress(first, to_m)
        lanes.compress(second, to_v)
        if half:
            lanes.compress(after, to_masters)
        lanes.store(_rounded(builder, after) if half else after, p)
        return context.get_dummy_value()

    return types.void(p, g, types.intp, types.uint16, old, new, types.intp, constants), make


def _stepped(
    builder: Any, value: Any, gradient: Any, state: Any, pace: Any, scalars: Any
) -> tuple[Any, Any, Any]:
    """Moments and value after a step; scalars are (decay, blend, β₂, scale, ε, near)."""
    decay, blend, beta2, scale, eps = (_spread(builder, one, WORD) for one in scalars[:5])
    near = builder.fcmp_ordered("!=", scalars[5], scalars[5].type(0.0))
    start = builder.select(near, state[0], gradient)
    first = _call(
        builder, "llvm.fma.v16f32", _SINGLES, blend, builder.fsub(gradient, state[0]), start
    )
    second = _call(builder, "llvm.fma.v16f32", _SINGLES, builder.fmul(scale, gradient), gradient,
                   builder.fmul(state[1], beta2))  # fmt: skip
    root = _call(builder, "llvm.sqrt.v16f32", _SINGLES, second)
    below = builder.fadd(builder.fdiv(root, pace[1]), eps)
    moved = builder.fdiv(builder.fmul(pace[0], first), below)
    return first, second, builder.fadd(builder.fmul(value, decay), moved)
