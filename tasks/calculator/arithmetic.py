"""The calculator: exact arithmetic on untrusted text.

Only numbers, ``+ - * /`` and brackets are understood; names, calls, powers and everything else are refused by looking
at the syntax tree, so nothing is ever executed. Sizes are bounded, so that no text takes long.
"""

from __future__ import annotations

import ast
import operator
from fractions import Fraction

MAX_CHARS = 200
MAX_DIGITS = 30
"""Of a result, before or after the decimal point's place: a longer one is refused."""
DECIMALS = 6
"""Shown of a result that goes on forever, as 1 / 3 does."""

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class CalculatorError(Exception):
    """The expression is at fault. The message is what its author may read to write a better one."""


def calculate(expression: str) -> str:
    """The value of an expression, as text: ``"7 / 2"`` gives ``"3.5"``. Raises CalculatorError."""
    if len(expression) > MAX_CHARS:
        raise CalculatorError(f"the expression is longer than {MAX_CHARS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError("not an expression of numbers, + - * / and brackets") from None
    return shown(_value(tree.body, expression.strip()))


def shown(value: Fraction) -> str:
    """A number as people write it: no fraction, no trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(value * 10**DECIMALS)
    whole, rest = divmod(abs(scaled), 10**DECIMALS)
    return f"{'-' if scaled < 0 else ''}{whole}.{rest:0{DECIMALS}d}".rstrip("0").rstrip(".")


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, source), _value(node.right, source)
        try:
            return _bounded(_OPERATORS[type(node.op)](left, right))
        except ZeroDivisionError:
            raise CalculatorError("division by zero") from None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(_number(ast.get_source_segment(source, node) or ""))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        raise CalculatorError("powers are not supported; multiply instead")
    raise CalculatorError("only numbers, + - * / and brackets are supported")


def _number(text: str) -> Fraction:
    """From the text, because a float would have lost digits. Exponents could be astronomic, so they are refused."""
    if not set(text) <= set("0123456789."):
        raise CalculatorError(f"write numbers in plain digits, not {text!r}")
    return Fraction(text.rstrip("."))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise CalculatorError(f"a number of more than {MAX_DIGITS} digits")
    return value
