"""Faults that can be planted in a program, one at a time: what its author may get wrong.

    statements = ast.parse(source).body
    for fault in faults(statements, first_line):
        fault.plant()    # from now on the statement statements[fault.statement] is wrong

A condition is turned round, an operand, a filter, a statement or an element is left out, one
operator, name or constant stands for another, a value that is returned is empty or another one.
"""

import ast
import copy

OPPOSITES = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt,
             ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In,
             ast.Is: ast.IsNot, ast.IsNot: ast.Is}
NEXT_TO = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPERATORS = {ast.Sub: ast.BitOr, ast.BitOr: ast.Sub, ast.BitAnd: ast.Sub, ast.BitXor: ast.BitOr,
             ast.Add: ast.Sub, ast.Mult: ast.Add}
METHODS = {'add': 'discard', 'discard': 'add', 'append': 'remove', 'update': 'difference_update',
           'difference_update': 'update', 'union': 'intersection', 'intersection': 'union',
           'difference': 'union', 'issubset': 'issuperset', 'issuperset': 'issubset',
           'isdisjoint': 'issubset', 'startswith': 'endswith', 'endswith': 'startswith',
           'any': 'all', 'all': 'any', 'min': 'max', 'max': 'min'}
COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.Try)
UNTOUCHED = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass, ast.Global)
CONDITION, OPERAND, OPERATOR, FILTER, STATEMENT, CONSTANT, RETURN, NAME, CALL, LOOP, DISPLAY = (
    'a condition turned round', 'an operand left out', 'another operator', 'a filter left out',
    'a statement left out', 'another constant', 'another value returned', 'another name',
    'another call', 'a loop cut short', 'an element left out')


class Fault:
    """`lines` are those of which one has to run for the fault to matter."""

    def __init__(self, kind, statement, slot, node, other):
        self.kind, self.statement = kind, statement
        self.parent, self.field, self.index = slot
        self.node, self.other = node, other
        self.lines = lines_of(node)

    def plant(self):
        other = ast.copy_location(self.other, self.node)
        if self.index is None:
            setattr(self.parent, self.field, other)
        else:
            getattr(self.parent, self.field)[self.index] = other
        ast.fix_missing_locations(other)

    def __str__(self):
        return 'line %d, %s: %s -> %s' % (
            self.lines[0], self.kind, one_line(self.node), one_line(self.other))


def one_line(node):
    """The beginning of a part of a program, as text."""
    text = ' '.join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 120 else text[:117] + '...'


def lines_of(node):
    """The lines of an expression or a statement; of one that holds others, those before these."""
    if isinstance(node, ast.comprehension):
        return range(node.target.lineno, (node.ifs or [node.iter])[-1].end_lineno + 1)
    if isinstance(node, COMPOUND):
        return range(node.lineno, max(node.lineno + 1, node.body[0].lineno))
    return range(node.lineno, node.end_lineno + 1)


def faults(statements, first_line):
    """Every fault that can be planted in those of `statements` that begin after `first_line`."""
    found = []
    for number, statement in enumerate(statements):
        if statement.lineno > first_line:
            for slot, node, near in slots(Top([statement]), Near()):
                found += [Fault(kind, number, slot, node, other)
                          for kind, other in alternatives(node, near)]
    return found


class Top:
    """Stands for the module above a top-level statement."""

    _fields = ('body',)

    def __init__(self, body):
        self.body = body


class Near:
    """What else is named in the function that a node is in: what its author may have mixed up."""

    def __init__(self, function=None):
        parts = list(ast.walk(function)) if function else []
        self.names = sorted({part.id for part in parts if isinstance(part, ast.Name)})
        self.attributes = sorted({part.attr for part in parts if isinstance(part, ast.Attribute)})


def slots(parent, near):
    """Yield ((parent, field, index), node, what is near) for every part that can be another."""
    for field in parent._fields:
        value = getattr(parent, field, None)
        if field in ('annotation', 'returns', 'ctx', 'args') and not isinstance(value, list):
            continue
        several = isinstance(value, list)
        for index, node in enumerate(value if several else [value]):
            if not isinstance(node, ast.AST) or is_text(node):
                continue
            if isinstance(node, (ast.expr, ast.stmt, ast.comprehension)):
                yield (parent, field, index if several else None), node, near
            yield from slots(node, Near(node) if isinstance(node, ast.FunctionDef) else near)


def is_text(node):
    """Whether a node only says something to somebody."""
    if isinstance(node, ast.Expr):
        return is_text(node.value)
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and (
        isinstance(node.value, str) and ' ' in node.value)


def alternatives(node, near):
    """Yield (kind of fault, what may stand in the place of `node`)."""
    for kind, maker in MAKERS:
        if isinstance(node, kind):
            yield from maker(node, near)
    if isinstance(node, ast.stmt) and not isinstance(node, UNTOUCHED):
        yield STATEMENT, ast.Pass()


def changed(node, **fields):
    """A copy of `node` with other values in some fields."""
    other = copy.copy(node)
    for field, value in fields.items():
        setattr(other, field, value)
    return other


def without(parts, index):
    return parts[:index] + parts[index + 1:]


def negated(node):
    return ast.UnaryOp(ast.Not(), node)


def call(name, *arguments):
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def conditional(node, near):
    yield CONDITION, changed(node, test=negated(node.test))
    yield CONDITION, changed(node, test=ast.Constant(True))
    if not isinstance(node, ast.While):
        yield CONDITION, changed(node, test=ast.Constant(False))


def boolean(node, near):
    for index in range(len(node.values)):
        values = without(node.values, index)
        yield OPERAND, values[0] if len(values) == 1 else changed(node, values=values)
        yield CONDITION, changed(node, values=(
            node.values[:index] + [negated(node.values[index])] + node.values[index + 1:]))
    yield OPERATOR, changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def comparison(node, near):
    for table in (OPPOSITES, NEXT_TO):
        if type(node.ops[0]) in table:
            yield OPERATOR, changed(node, ops=[table[type(node.ops[0])]()] + node.ops[1:])
    if len(node.ops) == 1:
        yield OPERATOR, changed(node, left=node.comparators[0], comparators=[node.left])


def unary(node, near):
    yield CONDITION if isinstance(node.op, ast.Not) else OPERATOR, node.operand


def binary(node, near):
    yield OPERAND, node.left
    yield OPERAND, node.right
    yield OPERATOR, changed(node, left=node.right, right=node.left)
    if type(node.op) in OPERATORS:
        yield OPERATOR, changed(node, op=OPERATORS[type(node.op)]())


def augmented(node, near):
    yield OPERATOR, ast.Assign([node.target], node.value)
    if type(node.op) in OPERATORS:
        yield OPERATOR, changed(node, op=OPERATORS[type(node.op)]())


def generated(node, near):
    for index, test in enumerate(node.ifs):
        yield FILTER, changed(node, ifs=without(node.ifs, index))
        yield CONDITION, changed(node, ifs=(
            node.ifs[:index] + [negated(test)] + node.ifs[index + 1:]))
    yield LOOP, changed(node, iter=part_of(node.iter, ast.Constant(1), None))


def loop(node, near):
    yield LOOP, changed(node, iter=part_of(node.iter, ast.Constant(1), None))
    yield LOOP, changed(node, iter=part_of(node.iter, None, ast.Constant(-1)))
    yield LOOP, changed(node, body=node.body + [ast.Break()])


def part_of(items, lower, upper):
    return ast.Subscript(call('list', items), ast.Slice(lower, upper), ast.Load())


def jump(node, near):
    yield LOOP, ast.Break() if isinstance(node, ast.Continue) else ast.Continue()


def constant(node, near):
    value = node.value
    if isinstance(value, bool):
        yield CONSTANT, ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield CONSTANT, ast.Constant(value + 1)
        yield CONSTANT, ast.Constant(value - 1)
    elif isinstance(value, str):
        yield from ((CONSTANT, ast.Constant(other)) for other in ('', value[:-1], 'x')
                    if other != value)
    elif value is None:
        yield CONSTANT, ast.Constant(True)


def returned(node, near):
    if node.value is not None:
        yield RETURN, ast.Return(ast.Constant(None))
        yield RETURN, ast.Return(negated(node.value))
        for empty in ('list', 'set', 'dict', 'str'):
            yield RETURN, ast.Return(call(empty))


def name(node, near):
    if isinstance(node.ctx, ast.Load):
        for other in near.names:
            if other != node.id:
                yield NAME, ast.Name(other, ast.Load())


def attribute(node, near):
    if isinstance(node.ctx, ast.Load):
        for other in near.attributes:
            if other != node.attr:
                yield NAME, changed(node, attr=other)
    if node.attr in METHODS:
        yield CALL, changed(node, attr=METHODS[node.attr])


def function(node, near):
    """Of a name that is called: the function that its author may have meant instead."""
    if node.id in METHODS:
        yield CALL, ast.Name(METHODS[node.id], ast.Load())


def called(node, near):
    for index in range(len(node.args)):
        yield CALL, changed(node, args=without(node.args, index))
    for index in range(len(node.keywords)):
        yield CALL, changed(node, keywords=without(node.keywords, index))
    if len(node.args) > 1:
        yield CALL, changed(node, args=[node.args[1], node.args[0]] + node.args[2:])
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield CALL, node.args[0]
    if isinstance(node.func, ast.Attribute):
        yield CALL, node.func.value


def sliced(node, near):
    if isinstance(node.ctx, ast.Load):
        yield CALL, node.value


def chosen(node, near):
    yield CONDITION, changed(node, body=node.orelse, orelse=node.body)


def display(node, near):
    if not isinstance(getattr(node, 'ctx', ast.Load()), ast.Load):
        return
    for index in range(len(node.elts)):
        yield DISPLAY, changed(node, elts=without(node.elts, index))


def table(node, near):
    for index in range(len(node.keys)):
        yield DISPLAY, changed(node, keys=without(node.keys, index),
                               values=without(node.values, index))


MAKERS = (
    ((ast.If, ast.While, ast.IfExp), conditional), (ast.IfExp, chosen), (ast.BoolOp, boolean),
    (ast.Compare, comparison), (ast.UnaryOp, unary), (ast.BinOp, binary),
    (ast.AugAssign, augmented), (ast.comprehension, generated), (ast.For, loop),
    ((ast.Continue, ast.Break), jump), (ast.Constant, constant), (ast.Return, returned),
    (ast.Name, name), (ast.Name, function), (ast.Attribute, attribute), (ast.Call, called),
    (ast.Subscript, sliced), ((ast.List, ast.Set, ast.Tuple), display), (ast.Dict, table))
