"""Vectors of eight float64, one number of eight matrices each, to write kernels in.

A :class:`Vec` stands for an LLVM value of type ``<8 x double>`` in the function being generated:
arithmetic on it emits instructions, so that formulas written in Python become straight-line vector
code without passing through Numba's type inference, which spares most of the compile time. It is
one register of AVX-512, two of AVX2 and four of NEON; LLVM splits it. Everything here is portable
LLVM IR. Explicit vectors replace LLVM's own vectorizers, which reached less than half of the speed.

The only liberty is the contraction of products and sums to fused multiply-adds.

In memory the eight matrices are records one after the other. :func:`load_fields` brings field `k`
of all of them into one vector, :func:`store_fields` puts them back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: Numbers per vector
WIDTH = 8

_DOUBLE, _INT32, _INT64 = ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _HALF = ir.VectorType(_DOUBLE, WIDTH), ir.VectorType(_DOUBLE, WIDTH // 2)
_INTEGERS = ir.VectorType(_INT64, WIDTH)
_CONTRACT = ("contract",)


class Vec:
    """Eight numbers; ``+ - * /`` with vectors and Python floats."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value):
        self.builder = builder
        self.value = value

    @classmethod
    def full(cls, builder: ir.IRBuilder, number: float) -> "Vec":
        """The same number eight times."""
        return cls(builder, ir.Constant(_VECTOR, [float(number)] * WIDTH))

    @classmethod
    def from_int(cls, builder: ir.IRBuilder, number: ir.Value) -> "Vec":
        """An integer known at run time, eight times."""
        one = builder.insert_element(
            _VECTOR(ir.Undefined), builder.sitofp(number, _DOUBLE), _INT32(0)
        )
        zeros = ir.Constant(ir.VectorType(_INT32, WIDTH), [0] * WIDTH)
        return cls(builder, builder.shuffle_vector(one, one, zeros))

    def _operand(self, other: "Vec | float") -> ir.Value:
        return other.value if isinstance(other, Vec) else Vec.full(self.builder, other).value

    def __add__(self, other):
        return Vec(
            self.builder, self.builder.fadd(self.value, self._operand(other), flags=_CONTRACT)
        )

    def __sub__(self, other):
        return Vec(
            self.builder, self.builder.fsub(self.value, self._operand(other), flags=_CONTRACT)
        )

    def __mul__(self, other):
        return Vec(
            self.builder, self.builder.fmul(self.value, self._operand(other), flags=_CONTRACT)
        )

    def __truediv__(self, other):
        return Vec(self.builder, self.builder.fdiv(self.value, self._operand(other)))

    def __rtruediv__(self, other):
        return Vec(self.builder, self.builder.fdiv(self._operand(other), self.value))

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self):
        return Vec(self.builder, self.builder.fneg(self.value))

    def sqrt(self) -> "Vec":
        """Square roots; NaN for negative numbers."""
        name = f"llvm.sqrt.v{WIDTH}f64"
        function_type = ir.FunctionType(_VECTOR, [_VECTOR])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        return Vec(self.builder, self.builder.call(function, [self.value]))

    def within(self, low: float, high: float) -> ir.Value:
        """Mask of ``low <= self <= high``; NaN is outside."""
        builder = self.builder
        return builder.and_(
            builder.fcmp_ordered("<=", self._operand(low), self.value),
            builder.fcmp_ordered("<=", self.value, self._operand(high)),
        )

    def select(self, mask: ir.Value, other: "Vec | float") -> "Vec":
        """The numbers of `self` where `mask` holds, of `other` elsewhere."""
        return Vec(self.builder, self.builder.select(mask, self.value, self._operand(other)))


def dot(start: Vec, pairs: Iterable[tuple[Vec, Vec]], sign: int = 1) -> Vec:
    """Return ``start + sum(x * y)``, or ``start - sum(x * y)`` for a sign of -1."""
    for x, y in pairs:
        start = start + x * y if sign > 0 else start - x * y
    return start


# --- integers -------------------------------------------------------------------------------


#: The bits of sqrt(1/2), and the mask of sign and exponent
_ROOT_HALF_BITS = 0x3FE6A09E00000000
_EXPONENT_BITS = -(1 << 52)


def _integers(number: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [number] * WIDTH)


class Product:
    r"""A product of positive numbers, ``mantissa * 2**exponent``, which cannot overflow.

    Each factor contributes a mantissa in :math:`[\sqrt{1/2}, \sqrt 2)`. Exact for positive normal
    numbers, meaningless for others, which :meth:`within` tells apart.
    """

    def __init__(self, mantissa: Vec, exponents: ir.Value, farthest: ir.Value):
        self.builder = mantissa.builder
        self.mantissa = mantissa
        self.exponents = exponents
        self.farthest = farthest

    @classmethod
    def of(cls, factors: Sequence[Vec]) -> "Product":
        """The product of some numbers, less than a thousand; not renormalised."""
        first, *others = (cls._of_one(factor) for factor in factors)
        for other in others:
            first = first.joined(other)
        return first

    @classmethod
    def _of_one(cls, factor: Vec) -> "Product":
        mantissa, exponent = _split(factor)
        # as an unsigned number, it is large for what is too small and for negative numbers as well
        return cls(mantissa, exponent, factor.builder.add(exponent, _integers(EXPONENT_LIMIT)))

    def joined(self, other: "Product") -> "Product":
        """The product of two products."""
        builder = self.builder
        farther = builder.icmp_unsigned(">", self.farthest, other.farthest)
        return Product(
            self.mantissa * other.mantissa,
            builder.add(self.exponents, other.exponents),
            builder.select(farther, self.farthest, other.farthest),
        )

    def within(self) -> ir.Value:
        """Mask of the lanes with all factors between 2**-EXPONENT_LIMIT and 2**EXPONENT_LIMIT."""
        limit = _integers(2 * EXPONENT_LIMIT)
        return self.builder.icmp_unsigned("<=", self.farthest, limit)

    def times(self, number: Vec) -> "Product":
        """The product with one more number, not far from one."""
        return Product(self.mantissa * number, self.exponents, self.farthest)

    def renormalised(self) -> "Product":
        """The same number with a mantissa like those of the factors."""
        mantissa, exponent = _split(self.mantissa)
        return Product(mantissa, self.builder.add(self.exponents, exponent), self.farthest)

    def exponent(self) -> Vec:
        """The exponents as floats."""
        return Vec(self.builder, self.builder.sitofp(self.exponents, _VECTOR))

    def log(self) -> Vec:
        """The logarithm."""
        product = self.renormalised()
        return log_of_split(product.mantissa, product.exponent())


#: The largest exponent at which neither a number nor its reciprocal is close to the end of range
EXPONENT_LIMIT = 996


def _split(x: Vec) -> tuple[Vec, ir.Value]:
    """Mantissa and exponent."""
    builder = x.builder
    bits = builder.bitcast(x.value, _INTEGERS)
    # the shift centres the mantissa on one
    shifted = builder.sub(bits, _integers(_ROOT_HALF_BITS))
    bits = builder.sub(bits, builder.and_(shifted, _integers(_EXPONENT_BITS)))
    return Vec(builder, builder.bitcast(bits, _VECTOR)), builder.ashr(shifted, _integers(52))


_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LOG_COEFFICIENTS = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


def log_of_split(mantissa: Vec, k: Vec) -> Vec:
    r"""The logarithm of ``mantissa * 2**k``, for a mantissa of :func:`_split`.

    With :math:`x = 2^k (1 + f)`, :math:`\log x = k \log 2 + \log(1 + f)`; the polynomial in
    :math:`q = f / (2 + f)` is that of FreeBSD's ``e_log.c`` (K. C. Ng), accurate to one unit in
    the last place.
    """
    f = mantissa - 1.0
    q = f / (f + 2.0)
    q2 = q * q
    series = Vec.full(f.builder, _LOG_COEFFICIENTS[-1])
    for coefficient in reversed(_LOG_COEFFICIENTS[:-1]):
        series = series * q2 + coefficient
    half_square = 0.5 * f * f
    low = q * (half_square + q2 * series) + k * _LOG2_LOW
    return k * _LOG2_HIGH - ((half_square - low) - f)


def mask_below(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """Mask of the first `count` lanes."""
    one = builder.insert_element(_INTEGERS(ir.Undefined), count, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, WIDTH), [0] * WIDTH)
    lanes = ir.Constant(_INTEGERS, list(range(WIDTH)))
    return builder.icmp_signed("<", lanes, builder.shuffle_vector(one, one, zeros))


def mask_to_int(builder: ir.IRBuilder, mask: ir.Value) -> ir.Value:
    """The mask as the lowest eight bits of an integer, the first lane lowest."""
    return builder.zext(builder.bitcast(mask, ir.IntType(WIDTH)), _INT64)


# --- memory ---------------------------------------------------------------------------------


def numbers(builder: ir.IRBuilder, pointer: ir.Value, count: int) -> list[ir.Value]:
    """Read the first `count` integers of a table."""
    return [builder.load(builder.gep(pointer, [ir.Constant(_INT64, k)])) for k in range(count)]


class Memory:
    """Doubles at an address that is known at run time."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value, align: int = 8):
        self.builder = builder
        self.pointer = builder.inttoptr(address, _DOUBLE.as_pointer())
        self.align = align

    def _at(self, offset: int | ir.Value, vector: ir.Type) -> ir.Value:
        if isinstance(offset, int):
            offset = ir.Constant(_INT64, offset)
        pointer = self.builder.gep(self.pointer, [offset])
        return self.builder.bitcast(pointer, vector.as_pointer())

    def load(self, offset: int | ir.Value) -> Vec:
        """Eight numbers, the first at `offset`."""
        return Vec(self.builder, self.builder.load(self._at(offset, _VECTOR), align=self.align))

    def load_halves(self, first: int, second: int) -> Vec:
        """Four numbers at each of two offsets."""
        halves = [self.builder.load(self._at(k, _HALF), align=8) for k in (first, second)]
        both = ir.Constant(ir.VectorType(_INT32, WIDTH), list(range(WIDTH)))
        return Vec(self.builder, self.builder.shuffle_vector(*halves, both))

    def load_one(self, offset: int | ir.Value) -> ir.Value:
        """The number at `offset`."""
        return self.builder.load(self._at(offset, _DOUBLE))

    def store(self, vector: Vec, offset: int | ir.Value) -> None:
        """Write eight numbers, the first to `offset`."""
        self.builder.store(vector.value, self._at(offset, _VECTOR), align=self.align)

    def store_one(self, number: ir.Value, offset: int | ir.Value) -> None:
        """Write one number to `offset`."""
        self.builder.store(number, self._at(offset, _DOUBLE))

    def load_some(self, offset: int, count: int) -> Vec:
        """The first `count` lanes, of at most eight; what is in the others does not matter."""
        pointer = self._at(offset, ir.VectorType(_DOUBLE, count))
        numbers = self.builder.load(pointer, align=self.align)
        lanes = [min(lane, count - 1) for lane in range(WIDTH)]
        mask = ir.Constant(ir.VectorType(_INT32, WIDTH), lanes)
        return Vec(self.builder, self.builder.shuffle_vector(numbers, numbers, mask))

    def store_some(self, vector: Vec, offset: int, count: int) -> None:
        """Write the first `count` lanes."""
        mask = ir.Constant(ir.VectorType(_INT32, count), list(range(count)))
        numbers = self.builder.shuffle_vector(vector.value, vector.value, mask)
        pointer = self._at(offset, ir.VectorType(_DOUBLE, count))
        self.builder.store(numbers, pointer, align=self.align)


class Scattered:
    """Eight rows that lie apart, by their numbers."""

    def __init__(self, builder: ir.IRBuilder, start, stride, row_numbers: Sequence[ir.Value]):
        self.rows = [
            Memory(builder, builder.add(start, builder.mul(number, stride)))
            for number in row_numbers
        ]

    def load(self, offset: int) -> Vec:
        """One number of each row."""
        builder = self.rows[0].builder
        vector = _VECTOR(ir.Undefined)
        for lane, row in enumerate(self.rows):
            vector = builder.insert_element(vector, row.load_one(offset), _INT32(lane))
        return Vec(builder, vector)

    def store(self, vector: Vec, offset: int) -> None:
        """Write one number of each row."""
        for lane, row in enumerate(self.rows):
            row.store_one(vector.builder.extract_element(vector.value, _INT32(lane)), offset)

    def load_fields(self, size: int) -> dict[int, Vec]:
        """All of rows of `size` numbers each: field -> vector."""
        loaded: dict[int, Vec] = {}
        for start, inside in _windows(range(size), max(size, WIDTH), WIDTH):
            columns = transpose([row.load_some(start, min(size, WIDTH)) for row in self.rows])
            loaded |= {k: columns[k - start] for k in inside}
        return loaded

    def store_fields(self, fields: Sequence[Vec]) -> None:
        """Write rows of ``len(fields)`` numbers each."""
        size = len(fields)
        for start, _ in _windows(range(size), max(size, WIDTH), WIDTH):
            inside = list(fields[start : start + WIDTH])
            inside += [inside[0]] * (WIDTH - len(inside))
            for row, vector in zip(self.rows, transpose(inside), strict=True):
                row.store_some(vector, start, min(size, WIDTH))


class Difference:
    """Doubles at one address minus those at another, to read."""

    def __init__(self, left: Memory, right: Memory):
        self.builder = left.builder
        self.left = left
        self.right = right

    def load(self, offset: int | ir.Value) -> Vec:
        """Eight numbers, the first at `offset`."""
        return self.left.load(offset) - self.right.load(offset)

    def load_halves(self, first: int, second: int) -> Vec:
        """Four numbers at each of two offsets."""
        return self.left.load_halves(first, second) - self.right.load_halves(first, second)


def pick(registers: Sequence[Vec], elements: Sequence[int]) -> Vec:
    """Pick eight elements from vectors that are numbered through: element 11 is ``[1][3]``.

    One shuffle merges two vectors: a pick from `r` vectors takes `r - 1`.
    """
    builder = registers[0].builder
    used = sorted({element // WIDTH for element in elements})
    result = registers[used[0]].value
    # of the first vector, elements are still where they were
    indices = [element % WIDTH for element in elements]
    others = used[1:] or [used[0]]
    for step, other in enumerate(others):
        merged = [
            WIDTH + element % WIDTH
            if element // WIDTH == other
            else (indices[lane] if step == 0 else lane)
            for lane, element in enumerate(elements)
        ]
        mask = ir.Constant(ir.VectorType(_INT32, WIDTH), merged)
        result = builder.shuffle_vector(result, registers[other].value, mask)
    return Vec(builder, result)


def transpose(rows: Sequence[Vec]) -> list[Vec]:
    """Transpose 8 x 8 numbers: three rounds, of which the last two move blocks of two numbers."""
    pairs = [(0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15)]
    blocks = [(0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)]
    first = [pick(rows[i : i + 2], pairs[odd]) for i in range(0, WIDTH, 2) for odd in (0, 1)]
    second: dict[tuple[int, int, int], Vec] = {}
    for half in (0, 1):
        for odd in (0, 1):
            both = [first[4 * half + odd], first[4 * half + 2 + odd]]
            for block in (0, 1):
                second[half, block, odd] = pick(both, blocks[block])
    columns: dict[int, Vec] = {}
    for block in (0, 1):
        for odd in (0, 1):
            both = [second[0, block, odd], second[1, block, odd]]
            for last in (0, 1):
                columns[4 * last + 2 * block + odd] = pick(both, blocks[last])
    return [columns[k] for k in range(WIDTH)]


def _windows(fields: Iterable[int], size: int, width: int) -> Iterator[tuple[int, list[int]]]:
    """Cover fields by windows inside of a record: start and fields of each."""
    rest = sorted(fields)
    while rest:
        start = min(rest[0], size - width)
        inside = [field for field in rest if field < start + width]
        yield start, inside
        rest = rest[len(inside) :]


def load_fields(
    memory: Memory | Difference | Scattered, size: int, fields: Sequence[int]
) -> dict[int, Vec]:
    """Load fields of eight records of `size` numbers each: field -> vector.

    Nothing outside of the records is read. Four fields move together, and a vector takes those of
    two records: that is a round of shuffles less than by :func:`transpose`, and hardly a field is
    moved in vain.
    """
    if isinstance(memory, Scattered):
        return memory.load_fields(size)
    half = WIDTH // 2
    if size < half:
        registers = [memory.load(WIDTH * i) for i in range(size)]
        return {k: pick(registers, [size * lane + k for lane in range(WIDTH)]) for k in fields}
    # of the two records, one is two after the other: the last round puts all in their order
    pairs = ((0, 2), (1, 3), (4, 6), (5, 7))
    even, odd = (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15)
    low, high = (0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)
    loaded: dict[int, Vec] = {}
    for start, inside in _windows(fields, size, half):
        both = [memory.load_halves(*(size * lane + start for lane in pair)) for pair in pairs]
        mixed = [[pick(both[i : i + 2], take) for i in (0, 2)] for take in (even, odd)]
        for k in inside:
            block, parity = divmod(k - start, 2)
            loaded[k] = pick(mixed[parity], (low, high)[block])
    return loaded


def store_fields(
    memory: Memory | Scattered | None,
    fields: Sequence[Vec],
    negative: Memory | Scattered | None = None,
) -> None:
    """Store eight records of ``len(fields)`` numbers each; a vector may appear several times.

    Minus the records go to `negative`: they are negated when they are transposed already.
    """
    if isinstance(memory, Scattered):
        memory.store_fields(fields)
        memory = None
    if isinstance(negative, Scattered):
        negative.store_fields([-x for x in fields])
        negative = None
    for offset, vector in _records(fields) if memory or negative else ():
        if memory is not None:
            memory.store(vector, offset)
        if negative is not None:
            negative.store(-vector, offset)


def _records(fields: Sequence[Vec]) -> Iterator[tuple[int, Vec]]:
    """Yield offset and vector of eight numbers, of eight records."""
    size = len(fields)
    distinct = list({id(field): field for field in fields}.values())
    if size <= 4:
        for i in range(size):
            places = [divmod(WIDTH * i + element, size) for element in range(WIDTH)]
            yield WIDTH * i, pick(fields, [WIDTH * k + lane for lane, k in places])
    elif len(distinct) <= WIDTH:
        slots = {id(field): slot for slot, field in enumerate(distinct)}
        slot_of = [slots[id(field)] for field in fields]
        rows = transpose(distinct + [distinct[0]] * (WIDTH - len(distinct)))
        for i in range(size):
            places = [divmod(WIDTH * i + element, size) for element in range(WIDTH)]
            yield WIDTH * i, pick(rows, [WIDTH * lane + slot_of[k] for lane, k in places])
    else:
        for start, _ in _windows(range(size), size, WIDTH):
            for lane, row in enumerate(transpose(fields[start : start + WIDTH])):
                yield size * lane + start, row


# --- loops ----------------------------------------------------------------------------------


class Variable:
    """A vector that changes in a loop."""

    def __init__(self, start: Vec):
        self.builder = start.builder
        self.slot = cgutils.alloca_once(self.builder, _VECTOR)
        self.set(start)

    def get(self) -> Vec:
        """The present value."""
        return Vec(self.builder, self.builder.load(self.slot))

    def set(self, vector: Vec) -> None:
        """Assign."""
        self.builder.store(vector.value, self.slot)


class Index:
    """An integer known at run time."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value):
        self.builder = builder
        self.value = value

    @classmethod
    def constant(cls, builder: ir.IRBuilder, number: int) -> "Index":
        """An integer known now."""
        return cls(builder, ir.Constant(_INT64, number))

    def _operand(self, other: "Index | int") -> ir.Value:
        return other.value if isinstance(other, Index) else ir.Constant(_INT64, other)

    def __add__(self, other):
        return Index(self.builder, self.builder.add(self.value, self._operand(other)))

    def __sub__(self, other):
        return Index(self.builder, self.builder.sub(self.value, self._operand(other)))

    def __mul__(self, other):
        return Index(self.builder, self.builder.mul(self.value, self._operand(other)))

    def __floordiv__(self, other):
        return Index(self.builder, self.builder.udiv(self.value, self._operand(other)))

    def half(self) -> "Index":
        """Half of an even number."""
        return Index(self.builder, self.builder.lshr(self.value, ir.Constant(_INT64, 1)))

    def if_at_most(self, small: "Index", large: "Index", otherwise: "Index") -> "Index":
        """Return `self` where ``small <= large``, else `otherwise`."""
        mask = self.builder.icmp_signed("<=", small.value, large.value)
        return Index(self.builder, self.builder.select(mask, self.value, otherwise.value))


@contextmanager
def loop(
    builder: ir.IRBuilder,
    start: Index | int,
    stop: Index | int,
    step: int = 1,
    last: Index | None = None,
) -> Iterator[Index]:
    """Emit a loop over integers; the context's value is the index, at most `last`."""
    bounds = [
        bound if isinstance(bound, Index) else Index.constant(builder, bound)
        for bound in (start, stop)
    ]
    with cgutils.for_range_slice(
        builder, bounds[0].value, bounds[1].value, ir.Constant(_INT64, step), _INT64
    ) as (value, _):
        index = Index(builder, value)
        yield index if last is None else index.if_at_most(index, last, last)


def _load_intrinsic(type_: types.Type) -> Callable:
    """Make ``load(address)``, which reads a number of a type."""

    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], context.get_data_type(type_).as_pointer())
            return context.unpack_value(builder, type_, pointer)

        return type_(types.intp), codegen

    return load


def _store_intrinsic(type_: types.Type) -> Callable:
    """Make ``store(address, number)``, which writes a number as NumPy stores it."""

    @intrinsic
    def store(typingctx, address, number):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], context.get_data_type(type_).as_pointer())
            context.pack_value(builder, type_, args[1], pointer)
            return context.get_dummy_value()

        return types.void(types.intp, type_), codegen

    return store


load, load_int = _load_intrinsic(types.float64), _load_intrinsic(types.intp)
store, store_bool = _store_intrinsic(types.float64), _store_intrinsic(types.boolean)


@intrinsic
def store_flags(typingctx, address, flags):
    """Write the lowest eight bits of an integer as eight NumPy booleans, the lowest first."""

    def codegen(context, builder, signature, args):
        mask = builder.bitcast(
            builder.trunc(args[1], ir.IntType(WIDTH)), ir.VectorType(ir.IntType(1), WIDTH)
        )
        booleans = builder.zext(mask, ir.VectorType(ir.IntType(8), WIDTH))
        pointer = builder.inttoptr(args[0], booleans.type.as_pointer())
        builder.store(booleans, pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen
