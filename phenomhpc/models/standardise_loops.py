"""The compiled loops of `standardise`, which imports them when it first needs them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from phenomhpc.compiled import compiled, instruction, part

# Pixels that are summed before their sums join the plane's.
_PIECE = 4096
# Values that are written at a time, and the bytes to whose multiple they must go.
_VALUES, _LINE = 16, 64


@instruction
def _write_past_caches(typing: Any, pixels: Any, to: Any, shift: Any, factor: Any) -> Any:
    """(pixel - shift) * factor of the first 16 of `pixels` to f32 at the address `to`, a multiple of 64.

    A batch of floats is larger than the caches: what goes through them is first fetched from memory, only to be written over.
    """
    pixel = pixels.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, address, *numbers = arguments
        floats = ir.VectorType(ir.FloatType(), _VALUES)
        integers = ir.VectorType(ir.IntType(pixel.bitwidth), _VALUES)
        first, zeros = (
            ir.Constant(ir.IntType(32), 0),
            ir.Constant(ir.VectorType(ir.IntType(32), _VALUES), [0] * _VALUES),
        )
        nothing = ir.Constant(floats, ir.Undefined)
        ones = [builder.insert_element(nothing, value, first) for value in numbers]
        shifts, factors = (builder.shuffle_vector(one, nothing, zeros) for one in ones)
        source = builder.bitcast(context.make_array(pixels)(context, builder, array).data, integers.as_pointer())
        values = builder.uitofp(builder.load(source, align=pixel.bitwidth // 8), floats)
        done = builder.fmul(builder.fsub(values, shifts), factors)
        written = builder.store(done, builder.inttoptr(address, floats.as_pointer()), align=_LINE)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(pixels, types.int64, types.float32, types.float32), generate


@instruction
def _fence(typing: Any) -> Any:
    """Whoever is told of what has been written sees it, however it was written."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@part
def _sums_of_bytes(piece: Any) -> Any:
    """Sum of a piece and of its squares: both fit 32 bits, of which a vector holds twice as many as of 64."""
    total, squares = np.uint32(0), np.uint32(0)
    for j in range(len(piece)):
        value = np.uint32(piece[j])
        total = np.uint32(total + value)
        squares = np.uint32(squares + np.uint32(value * value))
    return np.uint64(total), np.uint64(squares)


@part
def _sums_of_shorts(piece: Any) -> Any:
    """The same for two bytes."""
    total, squares = np.uint64(0), np.uint64(0)
    for j in range(len(piece)):
        value = np.uint64(piece[j])
        total += value
        squares += value * value
    return total, squares


@part
def _sums(line: Any) -> Any:
    """Sum of the integers and of their squares, exactly."""
    total, squares = np.uint64(0), np.uint64(0)
    for begin in range(0, len(line), _PIECE):
        piece = line[begin : begin + _PIECE]
        if line.itemsize == 1:
            part_total, part_squares = _sums_of_bytes(piece)
        else:
            part_total, part_squares = _sums_of_shorts(piece)
        total += part_total
        squares += part_squares
    return total, squares


@compiled("void(u1[:,::1], f8[::1], f8, f4[:,::1])", "void(u2[:,::1], f8[::1], f8, f4[:,::1])")
def standardise_planes(pixels: Any, scale: Any, eps: Any, done: Any) -> None:
    """done f32[n, p]: (x - mean) / sqrt(variance + eps * scale^2) of each row of pixels u8|u16[n, p], scale f64[n].

    Sums of integers are exact; mean and variance are f64, the values f32.
    """
    for row in range(pixels.shape[0]):
        line, to = pixels[row], done[row]
        total, squares = _sums(line)
        mean = total / len(line)
        variance = max(squares / len(line) - mean * mean, 0.0)
        factor, shift = np.float32(1.0 / np.sqrt(variance + eps * scale[row] * scale[row])), np.float32(mean)
        address = np.int64(to.ctypes.data)
        whole = len(line) - len(line) % _VALUES if address % _LINE == 0 else 0
        for j in range(0, whole, _VALUES):
            _write_past_caches(line[j:], address + 4 * j, shift, factor)
        for j in range(whole, len(line)):
            to[j] = (np.float32(line[j]) - shift) * factor
    _fence()
