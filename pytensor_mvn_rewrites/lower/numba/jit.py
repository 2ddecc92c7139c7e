"""Compile kernels once per machine, and call them by their address.

Numba links the machine code of a callee into its caller and optimises both together. A node of a
PyTensor function has four nested callers (the kernel of the op, the node, the graph, the final
function), and a large kernel would be compiled five times. Here the callers hold only the name of
a kernel: at the first call they ask :func:`kernel_address` for its address, which loads the kernel
from PyTensor's disk cache or compiles it. Addresses are never stored on disk.

A kernel is a function of one table of integers, see :class:`Table`.
"""

import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from weakref import WeakValueDictionary

import llvmlite
import numba
import numpy as np
import pytensor
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit

#: The sources of the kernels, and what makes machine code of them: part of every cache key, because
#: Numba's cache does not look at either
SOURCES = sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
).hexdigest()
VERSIONS = {package.__name__: package.__version__ for package in (pytensor, numba, llvmlite)}

TABLE_TYPE = types.CPointer(types.intp)

_logger = logging.getLogger(__name__)


class Table:
    """What is where in the table that a kernel is called with.

    The header is followed by `STRIDES` numbers for each operand and output: its address, and the
    distances in bytes between its elements along the batch axes ``R`` and ``M`` and along its core
    axes. An address of zero stands for an operand that the op does not have, or for an output that
    is not wanted; a distance of zero along a batch axis for an operand that is broadcast, or for an
    output that is summed, and starts at zero. In the header, `IS_CHECKED` says that a matrix that
    is not positive definite adds minus infinity to the sum `total`, instead of NaN. A kernel does
    the matrices from `M_START` to `M_STOP`, of `N_M` in all.

    When rows are in groups, `start` and `order` say which rows a matrix has, see :mod:`.groups`.
    """

    N_R, N_M, N, IS_LOGP, IS_CHECKED, PARAM, M_START, M_STOP = range(8)
    FIRST = 8
    STRIDES = 5
    NAMES = (
        *("value", "mu", "matrix", "g_first", "g_second"),
        *("first", "second", "dvalue", "dmu", "dmatrix", "posdef", "total"),
        *("start", "order"),
    )
    CORE_NDIMS = (1, 1, 2, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0)
    SIZE = FIRST + STRIDES * len(NAMES)

    @classmethod
    def entry(cls, name: str) -> int:
        """Where the numbers of an operand or output start."""
        return cls.FIRST + cls.STRIDES * cls.NAMES.index(name)


TABLE_SIZE = Table.SIZE

#: Codes of the parametrizations in the table
COV, CHOL, TAU = 0, 1, 2
PARAM_CODES = {"cov": COV, "chol": CHOL, "tau": TAU}

#: Stands for the address of a kernel that has been interpreted
INTERPRETED = 1

#: What makes the functions of kernels of their names, by the first words of these
_BUILDERS: dict[str, Callable[[str], Callable]] = {}

#: Compiled kernels by name, with what keeps their machine code alive
_KERNELS: dict[str, tuple[int, Callable]] = {}


def cache_key(*parts) -> str:
    """Hash of `parts`, sources and versions; functions with equal keys share machine code."""
    return sha256(repr((SOURCES, VERSIONS, *parts)).encode()).hexdigest()


def kernel_address(name: str) -> int:
    """The address of a kernel; compiles it if no process of this machine has done so."""
    if name not in _KERNELS:
        function = kernel_function(name)
        CACHED_SRC_FUNCTIONS[function] = cache_key(name)
        # contraction to fused multiply-adds is the only liberty, whatever config.numba__fastmath
        # says: NaN must stay NaN, and pivots must be compared as they are
        compiled = njit_exact(function, cache=bool(config.numba__cache))
        try:
            compiled.compile((TABLE_TYPE,))
        except Exception as error:
            # a full disk, a folder that is read-only, a file that is cut off: if it is not the
            # cache, this raises as well
            compiled = njit_exact(function, cache=False)
            compiled.compile((TABLE_TYPE,))
            _logger.warning("The kernel %r is compiled without the disk cache: %s", name, error)
        result = compiled.overloads[(TABLE_TYPE,)]
        address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
        _KERNELS[name] = address, compiled
    return _KERNELS[name][0]


def kernel_function(name: str) -> Callable:
    """The function that is compiled to a kernel."""
    return _BUILDERS[name.split()[0]](name)


def builds_kernel(*kinds: str):
    """Register what makes the function of each kernel whose name begins with one of `kinds`."""

    def register(build: Callable[[str], Callable]):
        _BUILDERS.update(dict.fromkeys(kinds, build))
        return build

    return register


def is_kernel(name: str):
    """Register the function of the kernel of a name."""

    def register(function: Callable):
        _BUILDERS[name] = lambda name: function
        return function

    return register


def njit_exact(function: Callable | None = None, *, reassociate: bool = False, **options):
    """`njit` for kernels and what they call; the freedom to reassociate sums is for single loops.

    Small functions of this kind are not cached: kernels contain them.
    """
    fastmath = {"contract", "reassoc"} if reassociate else {"contract"}
    jit = numba_njit(fastmath=fastmath, error_model="numpy", **options)
    return jit if function is None else jit(function)


def bind(function: Callable, **constants) -> Callable:
    """A copy of a function with other values for some of its globals.

    Numba would pass them as constants if they were variables of a closure as well, but it does not
    find such functions in its disk cache again.
    """
    return FunctionType(
        function.__code__,
        function.__globals__ | constants,
        function.__name__,
        function.__defaults__,
    )


#: (Key, whether it is cached on disk) -> the function, as long as a compiled graph holds it
_functions: WeakValueDictionary[tuple[str, bool], Callable] = WeakValueDictionary()


def compile_source(source: str, name: str, env: dict) -> tuple[Callable, str]:
    """Compile the function `name` of `source`, whose globals are `env`; return it and its key.

    Nodes of one source share one function, which Numba compiles once.
    """
    key, cache = cache_key(source, bool(config.numba__fastmath)), bool(config.numba__cache)
    function = _functions.get((key, cache))
    if function is None:
        # a cache entry names the module of its globals
        env = {"__name__": __name__, "np": np, **env}
        plain = compile_numba_function_src(source, name, global_env=env, cache_key=key)
        function = _functions[key, cache] = numba_njit(plain, cache=cache)
    return function, key


@intrinsic(prefer_literal=True)
def call_kernel(typingctx, name, axes, header, arrays):
    """Call a kernel by its name with a table that describes arrays.

    Parameters
    ----------
    name : str, literal
    axes : str, literal
        The batch axes of each array, separated by commas.
    header : tuple of int
    arrays : tuple of array or None
        In the order of the table.
    """
    all_axes = axes.literal_value.split(",")

    def codegen(context, builder, signature, args):
        numbers = cgutils.unpack_tuple(builder, args[2])
        for own, type_, value in zip(
            all_axes, signature.args[3], cgutils.unpack_tuple(builder, args[3]), strict=True
        ):
            numbers += _describe(context, builder, own, type_, value)
        word = context.get_value_type(types.intp)
        table = cgutils.alloca_once(builder, word, size=ir.Constant(ir.IntType(32), len(numbers)))
        for position, number in enumerate(numbers):
            builder.store(number, cgutils.gep_inbounds(builder, table, position))
        _call(context, builder, name.literal_value, table)
        return context.get_dummy_value()

    return types.void(name, axes, header, arrays), codegen


@intrinsic(prefer_literal=True)
def call_kernel_by_table(typingctx, name, table):
    """Call a kernel by its name with a table made before."""

    def codegen(context, builder, signature, args):
        _call(context, builder, name.literal_value, args[1])
        return context.get_dummy_value()

    return types.void(name, TABLE_TYPE), codegen


@intrinsic(prefer_literal=True)
def call_or_interpret(typingctx, name, table):
    """The same for a kernel that is not worth the wait for its compilation, see `.interpreted`."""

    def codegen(context, builder, signature, args):
        _call(context, builder, name.literal_value, args[1], may_interpret=True)
        return context.get_dummy_value()

    return types.void(name, TABLE_TYPE), codegen


@intrinsic
def data_address(typingctx, array):
    """The address of the first element of an array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


@njit_exact
def copy_table(target, source):
    """Copy a table, to describe a part of the batch or to put a result elsewhere."""
    for k in range(TABLE_SIZE):
        target[k] = source[k]


@intrinsic
def words(typingctx):
    """Room for `Table.SIZE` integers on the stack."""

    def codegen(context, builder, signature, args):
        word = context.get_value_type(types.intp)
        room = cgutils.alloca_once(builder, word, size=ir.Constant(ir.IntType(32), Table.SIZE))
        # aligns the frame of the kernel, where vectors are kept that do not fit in registers
        room.align = 64
        return room

    return TABLE_TYPE(), codegen


def _describe(context, builder, axes: str, type_: types.Type, value) -> list[ir.Value]:
    """Address and strides of an array with the given batch axes."""
    word = context.get_value_type(types.intp)
    zero = ir.Constant(word, 0)
    if isinstance(type_, types.NoneType):
        return [zero] * Table.STRIDES
    array = context.make_array(type_)(context, builder, value)
    strides = cgutils.unpack_tuple(builder, array.strides)
    batch = [strides[axes.index(axis)] if axis in axes else zero for axis in "RM"]
    core = strides[len(axes) :]
    # vectors have one core axis, the last one
    core = [zero] * (2 - len(core)) + core
    return [builder.ptrtoint(array.data, word), *batch, *core]


def _call(context, builder, name: str, table: ir.Value, *, may_interpret: bool = False) -> None:
    """Call a kernel, whose address is kept in a variable of the calling module."""
    byte_pointer = ir.IntType(8).as_pointer()
    digest = sha256(name.encode()).hexdigest()[:16]
    variable = cgutils.add_global_variable(builder.module, byte_pointer, f"mvn_kernel_{digest}")
    variable.linkage = "private"
    variable.initializer = ir.Constant(byte_pointer, None)
    variable.align = 8
    done = ir.Constant(ir.IntType(64), INTERPRETED).inttoptr(byte_pointer)
    known = builder.load_atomic(variable, "acquire", 8)
    address = cgutils.alloca_once_value(builder, known)
    with builder.if_then(cgutils.is_null(builder, known), likely=False):
        found = _ask_for_address(context, builder, name, table if may_interpret else None)
        with builder.if_then(cgutils.is_null(builder, found), likely=False):
            message = f"The kernel {name!r} could not be compiled, see the error above"
            context.call_conv.return_user_exc(builder, RuntimeError, (message,))
        with builder.if_then(builder.icmp_unsigned("!=", found, done)):
            builder.store_atomic(found, variable, "release", 8)
        builder.store(found, address)
    found = builder.load(address)
    with builder.if_then(builder.icmp_unsigned("!=", found, done), likely=True):
        function_type = context.call_conv.get_function_type(types.void, (TABLE_TYPE,))
        kernel = builder.bitcast(found, function_type.as_pointer())
        status, _ = context.call_conv.call_function(
            builder, kernel, types.void, (TABLE_TYPE,), [table]
        )
        with builder.if_then(status.is_error, likely=False):
            context.call_conv.return_status_propagate(builder, status)


def _ask_for_address(context, builder, name: str, table: ir.Value | None) -> ir.Value:
    """Call :func:`kernel_address`, or :func:`.interpreted.interpret_or_compile` with a table.

    Null, and the error reported, if it raises.
    """
    python = context.get_python_api(builder)
    gil = python.gil_ensure()
    arguments = [python.string_from_string(context.insert_const_string(builder.module, name))]
    module, function = __name__, "kernel_address"
    if table is not None:
        word = context.get_value_type(types.intp)
        arguments.append(python.long_from_ssize_t(builder.ptrtoint(table, word)))
        module = f"{__package__}.interpreted"
        function = "interpret_or_compile"
    result = call_python(context, builder, module, function, arguments)
    pointer = ir.IntType(8).as_pointer()
    address = cgutils.alloca_once_value(builder, ir.Constant(pointer, None))
    with builder.if_then(cgutils.is_not_null(builder, result), likely=True):
        builder.store(builder.bitcast(python.long_as_voidptr(result), pointer), address)
    python.decref(result)
    python.gil_release(gil)
    return builder.load(address)


def call_python(context, builder, module: str, function: str, arguments) -> ir.Value:
    """Call a function of a module, with the interpreter lock held; take the arguments over.

    The result is null if the function raises, and the error is reported as one that cannot be
    raised.
    """
    python = context.get_python_api(builder)
    owner = python.import_module(context.insert_const_string(builder.module, module))
    called = python.object_getattr_string(owner, function)
    result = python.call_function_objargs(called, arguments)
    with builder.if_then(cgutils.is_null(builder, result), likely=False):
        python.err_write_unraisable(called)
    for owned in (*arguments, called, owner):
        python.decref(owned)
    return result
