"""What numba's loops cannot be made to do: exchanges of bytes within registers, and calls of functions of C libraries.

Each is a few instructions of LLVM on vectors of 32 bytes, at addresses that need not be aligned; LLVM makes of them what the
machine has.  "Zip" takes elements of two vectors in turn, within each half of 16 bytes, which is one instruction on x86.

Nothing here looks at bounds: callers do.  numba knows compiled code by the file of the function that is compiled: who changes
something here changes COMPILED_WITH of frames and of encode_loops as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from phenomhpc.compiled import instruction

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WIDTH = 32
_EXCHANGES = ((4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555))


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _at(builder: Any, address: Any, number: int, apart: Any) -> Any:
    """address + number * apart; apart: a value of LLVM's or a number."""
    step = (
        ir.Constant(_I64, number * apart) if isinstance(apart, int) else builder.mul(apart, ir.Constant(_I64, number))
    )
    return builder.add(address, step)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(_pointer(builder, address, kind), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _shuffled(builder: Any, a: Any, b: Any, mask: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(mask)), mask))


def _zipped(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """The lower and the upper elements, in turn, of each half of both vectors."""
    num = a.type.count
    half, quarter = num // 2, num // 4
    found = []
    for start in (0, quarter):
        places = [begin + start + k for begin in (0, half) for k in range(quarter)]
        found.append(_shuffled(builder, a, b, [at for place in places for at in (place, num + place)]))
    return found[0], found[1]


def _store_halves(builder: Any, value: Any, low: Any, high: Any) -> None:
    half = value.type.count // 2
    _store(builder, _shuffled(builder, value, value, list(range(half))), low)
    _store(builder, _shuffled(builder, value, value, list(range(half, 2 * half))), high)


def _of_addresses(emit: Callable[..., None]) -> Callable[..., Any]:
    """What an intrinsic returns that takes addresses, or distances of them, and gives nothing."""

    def made(num: int) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(builder, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * num), generate

    return made


def _bits(builder: Any, planes: Any, apart: Any, to: Any) -> None:
    words = ir.VectorType(_I64, _WIDTH // 8)
    rows = [_load(builder, _at(builder, planes, number, apart), words) for number in range(8)]
    for distance, (shift, mask) in zip((4, 2, 1), _EXCHANGES, strict=True):
        by, kept = ir.Constant(words, [shift] * words.count), ir.Constant(words, [mask] * words.count)
        for low in (number for number in range(8) if not number & distance):
            high = low + distance
            t = builder.and_(builder.xor(builder.lshr(rows[low], by), rows[high]), kept)
            rows[low] = builder.xor(rows[low], builder.shl(t, by))
            rows[high] = builder.xor(rows[high], t)
    lanes = [builder.bitcast(row, ir.VectorType(_I8, _WIDTH)) for row in rows]
    for _ in range(3):
        lanes = [half for number in range(4) for half in _zipped(builder, lanes[number], lanes[number + 4])]
    for number, value in enumerate(lanes):
        _store_halves(builder, value, _at(builder, to, number, 16), _at(builder, to, number + 8, 16))


def _transposed(kind: Any, num: int) -> Callable[..., None]:
    """`num` columns of 2 `num` rows, of which each half becomes one of a vector's."""

    def emit(builder: Any, source: Any, row: Any, to: Any, column: Any) -> None:
        half = ir.VectorType(kind, num)
        rows = [_load(builder, _at(builder, source, number, row), half) for number in range(2 * num)]
        both = [_shuffled(builder, rows[k], rows[k + num], list(range(2 * num))) for k in range(num)]
        for _ in range(num.bit_length() - 1):
            pairs = zip(both[: num // 2], both[num // 2 :], strict=True)
            both = [piece for low, high in pairs for piece in _zipped(builder, low, high)]
        for number, value in enumerate(both):
            _store(builder, value, _at(builder, to, number, column))

    return emit


def _reversed(kind: Any, num: int) -> Callable[..., None]:
    def emit(builder: Any, source: Any, to: Any) -> None:
        value = _load(builder, source, ir.VectorType(kind, num))
        _store(builder, _shuffled(builder, value, value, list(range(num))[::-1]), to)

    return emit


def _copied(num: int) -> Callable[..., None]:
    def emit(builder: Any, source: Any, to: Any) -> None:
        _store(builder, _load(builder, source, ir.VectorType(_I8, num)), to)

    return emit


def _woven(builder: Any, low: Any, high: Any, to: Any) -> None:
    kind = ir.VectorType(_I8, _WIDTH)
    first, second = _zipped(builder, _load(builder, low, kind), _load(builder, high, kind))
    _store_halves(builder, first, to, _at(builder, to, 1, 32))
    _store_halves(builder, second, _at(builder, to, 1, 16), _at(builder, to, 1, 48))


def _unwoven(builder: Any, source: Any, low: Any, high: Any) -> None:
    pixels = _load(builder, source, ir.VectorType(_I8, 2 * _WIDTH))
    for first, to in ((0, low), (1, high)):
        _store(builder, _shuffled(builder, pixels, pixels, list(range(first, 2 * _WIDTH, 2))), to)


def _put(kind: Any) -> Callable[..., None]:
    """The low bits of a number."""

    def emit(builder: Any, to: Any, value: Any) -> None:
        _store(builder, builder.trunc(value, kind), to)

    return emit


@instruction
def bits_to_bytes(typing: Any, planes: Any, apart: Any, to: Any) -> Any:
    """256 elements of one byte: 32 bytes of each of eight planes of bits, `apart` bytes from each other.

    Hacker's Delight, 7-3 (H. S. Warren): matrices of 8 x 8 bits are transposed by exchanges; then bytes are zipped.
    """
    return _of_addresses(_bits)(3)


@instruction
def weave_32(typing: Any, low: Any, high: Any, to: Any) -> Any:
    """32 elements of two bytes from 32 low and 32 high ones."""
    return _of_addresses(_woven)(3)


@instruction
def apart(typing: Any) -> Any:
    """In a function: it is called, not put in where it is called, so that what is seldom done takes no registers there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        attributes = builder.function.attributes
        attributes.discard("alwaysinline")  # numba hands that down to what is called
        attributes.add("noinline")
        attributes.add("cold")
        return context.get_dummy_value()

    return types.void(), generate


@instruction
def unweave_32(typing: Any, source: Any, low: Any, high: Any) -> Any:
    """32 low and 32 high bytes from 32 elements of two bytes."""
    return _of_addresses(_unwoven)(3)


@instruction
def transpose_bytes(typing: Any, source: Any, row: Any, to: Any, column: Any) -> Any:
    """32 rows, `row` bytes apart, of 16 bytes each to 16 columns of 32 bytes, `column` bytes apart."""
    return _of_addresses(_transposed(_I8, 16))(4)


@instruction
def transpose_shorts(typing: Any, source: Any, row: Any, to: Any, column: Any) -> Any:
    """16 rows of 8 elements of two bytes to 8 columns of 16 elements."""
    return _of_addresses(_transposed(_I16, 8))(4)


@instruction
def reverse_bytes(typing: Any, source: Any, to: Any) -> Any:
    """32 bytes, the last first."""
    return _of_addresses(_reversed(_I8, 32))(2)


@instruction
def reverse_shorts(typing: Any, source: Any, to: Any) -> Any:
    """16 elements of two bytes, the last first."""
    return _of_addresses(_reversed(_I16, 16))(2)


@instruction
def copy_32(typing: Any, source: Any, to: Any) -> Any:
    """32 bytes."""
    return _of_addresses(_copied(32))(2)


@instruction
def copy_8(typing: Any, source: Any, to: Any) -> Any:
    """8 bytes."""
    return _of_addresses(_copied(8))(2)


@instruction
def copy_1(typing: Any, source: Any, to: Any) -> Any:
    """One byte."""
    return _of_addresses(_copied(1))(2)


@instruction
def put_1(typing: Any, to: Any, value: Any) -> Any:
    """The lowest byte of a number."""
    return _of_addresses(_put(_I8))(2)


@instruction
def put_2(typing: Any, to: Any, value: Any) -> Any:
    """The lowest two bytes of a number, little-endian."""
    return _of_addresses(_put(_I16))(2)


@instruction
def put_4(typing: Any, to: Any, value: Any) -> Any:
    """The lowest four bytes of a number, little-endian."""
    return _of_addresses(_put(_I32))(2)


@instruction
def byte_at(typing: Any, address: Any) -> Any:
    """u8 there, as i64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(_load(builder, arguments[0], _I8), _I64)

    return types.int64(types.int64), generate


@instruction
def number_at(typing: Any, address: Any) -> Any:
    """Little-endian i32 there, as i64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sext(_load(builder, arguments[0], _I32), _I64)

    return types.int64(types.int64), generate


@instruction
def hash_of_5(typing: Any, address: Any) -> Any:
    """LZ4's hash of the five bytes there, of which eight are read: 12 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.shl(_load(builder, arguments[0], _I64), ir.Constant(_I64, 24))
        return builder.lshr(builder.mul(word, ir.Constant(_I64, 889523592379)), ir.Constant(_I64, 52))

    return types.int64(types.int64), generate


@instruction
def same_of_16(typing: Any, a: Any, b: Any) -> Any:
    """How many bytes from there on are the same, at most 16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = []
        for at in (0, 8):
            words = [_load(builder, _at(builder, address, 1, at), _I64) for address in arguments]
            zeros.append(builder.cttz(builder.xor(*words), ir.Constant(ir.IntType(1), 0)))
        all_64 = ir.Constant(_I64, 64)
        both = builder.add(all_64, zeros[1])
        bits = builder.select(builder.icmp_unsigned("==", zeros[0], all_64), both, zeros[0])
        return builder.lshr(bits, ir.Constant(_I64, 3))

    return types.int64(types.int64, types.int64), generate


@instruction
def call_lz4_fast(typing: Any, function: Any, source: Any, to: Any, size: Any, capacity: Any, acceleration: Any) -> Any:
    """int LZ4_compress_fast(source, to, size, capacity, acceleration), at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, *given = arguments
        kind = ir.FunctionType(_I32, [_I64, _I64, _I32, _I32, _I32])
        numbers = [builder.trunc(value, _I32) for value in given[2:]]
        return builder.sext(builder.call(_pointer(builder, place, kind), [*given[:2], *numbers]), _I64)

    return types.int64(*[types.int64] * 6), generate


@instruction
def call_lz4(typing: Any, function: Any, source: Any, to: Any, size: Any, capacity: Any) -> Any:
    """int LZ4_decompress_safe(source, to, size, capacity), at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, *given = arguments
        kind = ir.FunctionType(_I32, [_I64, _I64, _I32, _I32])
        sizes = [builder.trunc(value, _I32) for value in given[2:]]
        return builder.sext(builder.call(_pointer(builder, place, kind), [*given[:2], *sizes]), _I64)

    return types.int64(*[types.int64] * 5), generate


@instruction
def call_zstd(typing: Any, function: Any, to: Any, capacity: Any, source: Any, size: Any) -> Any:
    """size_t ZSTD_decompress(to, capacity, source, size), at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, *given = arguments
        return builder.call(_pointer(builder, place, ir.FunctionType(_I64, [_I64] * 4)), given)

    return types.int64(*[types.int64] * 5), generate
