"""x"""

CORRUPTIONS = {}
LEFT_OUT = {}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(*a, **k): ...
